"""Audio files and arrays on the way in and out."""

import os

import numpy as np
import pytest
import soundfile
import torch
from fastjukebox.engine import AudioError
from fastjukebox.engine.audio import check_output, read_audio, wav_header, wav_samples, write_audio

RATE = 44100


def tone(seconds=0.25, rate=RATE, hertz=440.0):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def pitch(samples):
    """The strongest frequency, in Hz at 44.1 kHz."""
    return np.abs(np.fft.rfft(samples)).argmax() * RATE / len(samples)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_another_rate_is_resampled_and_keeps_pitch_and_length(tmp_path, rate):
    soundfile.write(tmp_path / "tone.wav", tone(1.0, rate), rate)
    samples = read_audio(tmp_path / "tone.wav", RATE)
    assert samples.dtype == torch.float32
    assert abs(samples.shape[1] - RATE) <= 1
    assert pitch(samples[0].numpy()) == pytest.approx(440, abs=2)
    assert torch.allclose(samples, read_audio(tone(1.0, rate), RATE, rate), atol=1e-3)


def test_channels_are_mixed_down(tmp_path):
    left = tone()
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, -left + 0.25], axis=1), RATE, "FLOAT")
    assert torch.allclose(read_audio(tmp_path / "stereo.wav", RATE), torch.full((1, len(left)), 0.125), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32])
def test_integer_samples_span_minus_one_to_one(dtype):
    limits = np.iinfo(dtype)
    middle = (int(limits.max) + int(limits.min) + 1) // 2
    samples = read_audio(np.array([limits.min, middle, limits.max], dtype), RATE)[0]
    assert samples[0] == -1
    assert samples[1] == 0
    assert samples[2] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_tensors_of_any_float_dtype(dtype):
    samples = torch.tensor([[0.5, -0.25], [0.0, 1.0]], dtype=dtype)
    for given in (samples, samples.clone().requires_grad_()):
        assert torch.equal(read_audio(given, RATE), samples.float())


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(0), "holds no samples"),
        (np.zeros((0, 5)), "holds no samples"),
        (np.array([0.0, np.nan]), "NaN or infinite"),
        (np.array([0.0, -np.inf]), "NaN or infinite"),
        (np.zeros((2, 2, 2)), r"must be float samples .* \(2, 2, 2\)"),
        (np.array(["a"]), "must be float samples"),
        (np.array([1j]), "must be float samples"),
    ],
)
def test_arrays_that_are_no_audio(samples, message):
    with pytest.raises(AudioError, match=message):
        read_audio(samples, RATE)


@pytest.mark.parametrize("rate", [0, -1, 1, 999, 2e6, float("nan"), float("inf"), "44100"])
def test_rates_that_are_none(rate):
    with pytest.raises(AudioError, match="sample rate of the audio given must be 1000 to 1000000 Hz"):
        read_audio(tone(), RATE, rate)


def test_a_file_has_a_rate_of_its_own(tmp_path):
    soundfile.write(tmp_path / "tone.wav", tone(), RATE)
    with pytest.raises(AudioError, match="has a sample rate of its own"):
        read_audio(tmp_path / "tone.wav", RATE, RATE)


def test_a_name_that_is_not_valid_unicode(tmp_path):
    path = tmp_path / os.fsdecode(b"bad\xff.wav")
    path.write_bytes(wav_header(100, RATE) + wav_samples(torch.zeros(100)))
    assert read_audio(path, RATE).shape == (1, 100)


@pytest.mark.parametrize("name", ["missing.wav", "empty.wav", "text.flac", "header.raw", "folder.wav"])
def test_files_that_cannot_be_read_are_named(tmp_path, name):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.flac").write_text("not audio")
    (tmp_path / "header.raw").write_bytes(b"\0" * 64)
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(AudioError, match=f"cannot read audio from .*{name}"):
        read_audio(tmp_path / name, RATE)


def test_samples_beyond_the_range_are_clipped(tmp_path):
    write_audio(tmp_path / "loud.wav", torch.tensor([[2.0, -3.0, 0.5]]), RATE)
    samples = soundfile.read(tmp_path / "loud.wav")[0]
    assert samples == pytest.approx([1, -1, 0.5], abs=1e-4)


def test_what_a_stream_writes_is_what_a_file_holds(tmp_path):
    samples = torch.from_numpy(tone(0.1)).float() * 2.5
    write_audio(tmp_path / "whole.wav", samples[None], RATE)
    parts = b"".join(wav_samples(part) for part in samples.split(999))
    assert (tmp_path / "whole.wav").read_bytes() == wav_header(len(samples), RATE) + parts


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    for name in ("a" * 251 + ".wav", "ü" * 125 + ".flac"):
        assert write_audio(tmp_path / name, torch.zeros(1, 100), RATE) == [tmp_path / name]
        assert [path.name for path in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "disk").mkdir()
    for name in ("a.wav", "b.flac"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / f"of {name}")
        # Once where nothing is yet, once over what is there.
        for samples in (torch.zeros(1, 100), torch.zeros(1, 200)):
            assert write_audio(tmp_path / name, samples, 44100) == [tmp_path / name]
        assert (tmp_path / name).is_symlink() and len(soundfile.read(tmp_path / "disk" / f"of {name}")[0]) == 200
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["of a.wav", "of b.flac"]
    # Found before anything is sampled.
    (tmp_path / "c.wav").symlink_to(tmp_path / "gone" / "c.wav")
    with pytest.raises(AudioError, match="gone does not exist"):
        check_output(tmp_path / "c.wav")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "d.wav").symlink_to(tmp_path / "pipe")
    write_audio(tmp_path / "d.wav", torch.zeros(1, 100), 44100)
    assert (tmp_path / "pipe").is_fifo() and not (tmp_path / "d.wav").is_symlink()


def test_what_cannot_be_sought_in_is_one_error(tmp_path):
    reader, writer = os.pipe()
    soundfile.write(tmp_path / "a.wav", np.zeros(1000), 44100)
    os.write(writer, (tmp_path / "a.wav").read_bytes())
    os.close(writer)
    with pytest.raises(AudioError, match=f"cannot read audio from /dev/fd/{reader}: it is a pipe"):
        read_audio(f"/dev/fd/{reader}", 44100)
    os.close(reader)
