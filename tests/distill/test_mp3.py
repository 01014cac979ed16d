"""MP3s that do not say how long they are: libsndfile guesses their length from the first frames."""

import numpy as np
import pytest
import soundfile
from fastjukebox.distill.audio_folder import read, scan
from fastjukebox.engine.audio import AudioError, read_audio

RATE, SECONDS = 44100, 6


def encoded(path, mode, loud_first=True):
    """Half noise, half near silence: of a varying bit rate, the noise takes most of the bytes."""
    levels = [0.3, 1e-5] if loud_first else [1e-5, 0.3]
    noise = np.random.default_rng(0).normal(size=RATE * SECONDS) * np.repeat(levels, RATE * SECONDS // 2)
    with soundfile.SoundFile(path, "w", RATE, 1, format="MP3", bitrate_mode=mode, compression_level=0.3) as file:
        file.write(noise)
    return path


def without_header(path):
    """The same file less its first frame, which holds no sound but the number of frames."""
    whole = path.read_bytes()
    assert any(name in whole[:256] for name in (b"Xing", b"Info"))
    # The length of an MPEG-1 layer III frame, by the bit rate's number in its header.
    rates = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
    size = 144 * rates[whole[2] >> 4] * 1000 // RATE + (whole[2] >> 1 & 1)
    assert whole[size] == 0xFF and whole[size + 1] & 0xE0 == 0xE0
    path.write_bytes(whole[size:])


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_with_a_header_all_is_there(tmp_path, mode):
    path = encoded(tmp_path / "a.mp3", mode)
    (song,) = scan(tmp_path, 0, 0).songs
    assert song.frames == RATE * SECONDS == read_audio(path, RATE).shape[1]


def test_of_a_constant_bit_rate_all_is_read(tmp_path):
    whole = read_audio(encoded(tmp_path / "a.mp3", "CONSTANT"), RATE)
    without_header(tmp_path / "a.mp3")
    found = scan(tmp_path, 0, 0)
    assert not found.skipped and abs(found.songs[0].frames - whole.shape[1]) < 3 * 1152
    assert read_audio(tmp_path / "a.mp3", RATE).shape[1] == found.songs[0].frames
    part = read(tmp_path, found.songs[0], RATE, 4 * RATE, 5 * RATE)
    assert np.allclose(part, read(tmp_path, found.songs[0], RATE)[4 * RATE : 5 * RATE], atol=1e-5)


def test_much_that_is_no_sound_may_follow(tmp_path):
    path = encoded(tmp_path / "a.mp3", "CONSTANT")
    path.write_bytes(path.read_bytes() + b"APETAGEX" + bytes(200_000))
    assert scan(tmp_path, 0, 0).songs[0].frames == RATE * SECONDS == read_audio(path, RATE).shape[1]


def test_a_short_one_is_read(tmp_path):
    with soundfile.SoundFile(tmp_path / "a.mp3", "w", RATE, 1, format="MP3", bitrate_mode="VARIABLE") as file:
        file.write(np.full(500, 0.1))
    assert scan(tmp_path, 0, 0).songs[0].frames == read_audio(tmp_path / "a.mp3", RATE).shape[1] == 500


def test_a_tag_before_the_sound_is_passed_over(tmp_path):
    path = encoded(tmp_path / "a.mp3", "CONSTANT")
    tag = b"ID3\x04\x00\x00" + bytes((0, 0, 2000 >> 7, 2000 & 127)) + bytes(2000)
    # Cut short, as its header tells.
    path.write_bytes(tag + path.read_bytes()[:60000])
    (skipped,) = scan(tmp_path, 0, 0).skipped
    assert "ends after" in skipped.reason


def test_of_a_varying_bit_rate_nothing_is_dropped_in_silence(tmp_path):
    # Guessed too long, it is read to its end.
    without_header(encoded(tmp_path / "b.mp3", "VARIABLE", loud_first=False))
    without_header(encoded(tmp_path / "a.mp3", "VARIABLE"))
    found = scan(tmp_path, 0, 0)
    (song,), (skipped,) = found.songs, found.skipped
    assert song.path == "b.mp3" and abs(song.frames - RATE * SECONDS) < 3 * 1152
    assert "does not say how long it is" in skipped.reason
    with pytest.raises(AudioError, match=r"a\.mp3 is an MP3 of varying bit rate .* ffmpeg"):
        read_audio(tmp_path / "a.mp3", RATE)
