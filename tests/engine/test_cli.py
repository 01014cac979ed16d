"""The command line from end to end, on a tiny stack with random weights: every command, every bad input."""

import json
import re
import subprocess
from pathlib import Path

import fastjukebox.engine
import numpy as np
import pytest
import soundfile
import torch
from command_line import command
from fastjukebox.engine import runs
from fastjukebox.engine.__main__ import main
from fastjukebox.engine.cli.terminal import clock

RATE = 44100
# Shorter than a window at every level, and no whole number of codes.
SECONDS, SAMPLES = 0.02, 882


def read(path):
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == RATE
    return samples


def write_tone(path, seconds, rate=RATE, channels=1):
    time = np.arange(round(seconds * rate)) / rate
    tone = 0.4 * np.sin(2 * np.pi * 440 * time)
    soundfile.write(path, np.stack([tone] * channels, axis=1), rate)


def write_codes(path, counts, value=3):
    runs.save_codes(Path(path), [torch.full((1, count), value) for count in counts])


def test_sample_writes_a_wav_of_the_exact_length(ok):
    out = ok("sample", "song.wav", "--seconds", SECONDS, "--seed", 5)
    assert len(read("song.wav")) == SAMPLES
    for line in (r"wrote +song\.wav", r"audio +0\.02 s", r"wall +\S+ s: \S+x real time", r"seed +5", r"run +song\.run"):
        assert re.search(f"^{line}$", out, re.M), out
    assert re.search(r"^decoder +\w+ on cpu in float32$", out, re.M), out
    assert sorted(path.name for path in Path().iterdir()) == ["song.run", "song.wav"]


def test_same_seed_gives_the_same_bytes_by_level_and_by_time_and_streamed(ok):
    for name, options in {"a": (), "b": ("--order", "time"), "c": ("--stream",), "d": ("--seed", 1)}.items():
        ok("sample", f"{name}.wav", "--seconds", SECONDS, *options)
    a, b, c, d = (Path(f"{name}.wav").read_bytes() for name in "abcd")
    assert a == b
    assert a == c
    assert a != d


def test_flac_holds_the_samples_of_the_wav_and_ogg_its_length(ok):
    for name in ("a.wav", "b.flac", "c.ogg"):
        ok("sample", name, "--seconds", 0.05, "--level", 2)
    # libsndfile rounds down for wav, to the nearest for flac.
    assert np.allclose(read("a.wav"), read("b.flac"), rtol=0, atol=1.01 / 32768)
    assert len(read("c.ogg")) == len(read("a.wav")) == 2205


def test_several_items_are_the_single_ones(ok):
    out = ok("sample", "many.wav", "--seconds", 0.05, "--level", 2, "--samples", 2, "--first-item", 4)
    assert "many-0.wav, many-1.wav" in out
    ok("sample", "one.wav", "--seconds", 0.05, "--level", 2, "--first-item", 5)
    assert Path("one.wav").read_bytes() == Path("many-1.wav").read_bytes()


def test_stream_to_stdout_is_the_wav(tiny_model, ok):
    args = ["--seconds", "0.01", "--model", str(tiny_model)]
    ok("sample", "a.wav", "--seconds", 0.01)
    done = subprocess.run(command("sample", "-", "--stream", *args), capture_output=True, check=True)
    assert done.stdout == Path("a.wav").read_bytes()
    assert b"wrote" in done.stderr


def test_settings_per_level(ok, fails):
    ok("sample", "a.wav", "--seconds", SECONDS, "--temperature", "0.9,1,0.8", "--top-k", "5,6,7", "--top-p", "1,.9,.8")
    params = json.loads(Path("a.run/request.json").read_text())["params"]
    assert params["temperature"] == [0.9, 1, 0.8]
    assert params["top_k"] == [5, 6, 7]
    assert "levels" in fails("sample", "b.wav", "--temperature", "1,1")


def test_nothing_is_replaced_without_being_asked(ok, fails):
    short = ("--seconds", 0.03, "--level", 2)
    ok("sample", "a.wav", *short)
    before = Path("a.wav").read_bytes()
    message = fails("sample", "a.wav", *short, "--seed", 1)
    assert "fastjukebox resume a.run" in message
    assert "--overwrite" in message
    assert "--overwrite" in fails("sample", "a.wav", *short, "--run", "other")
    assert Path("a.wav").read_bytes() == before
    ok("sample", "a.wav", *short, "--seed", 1, "--overwrite")
    assert Path("a.wav").read_bytes() != before


def test_a_run_takes_no_place_of_other_things(fails):
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    for more in ((), ("--overwrite",)):
        assert "mine holds other files and no run" in fails("sample", "a.wav", "--run", "mine", *more)
        for run in ("./a.wav", "a.wav/run"):
            assert "would be where a.wav is to be written" in fails("sample", "a.wav", "--run", run, *more)


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_has_help(ok, option):
    for name in ("sample", "continue", "upsample", "resume", "encode", "decode", "convert", "info"):
        assert f"Usage: fastjukebox {name}" in ok(name, option)


def test_the_time_left_is_told_as_by_a_clock():
    assert list(map(clock, (9.4, 59.6, 750, 11_100))) == ["0:09", "1:00", "12:30", "3:05:00"]


def test_version(capfd):
    assert main(["--version"]) == 0
    assert capfd.readouterr().out == f"fastjukebox {fastjukebox.engine.__version__}\n"


@pytest.mark.parametrize(("rate", "channels"), [(RATE, 1), (22050, 2), (48000, 2)])
def test_continue_audio_of_any_rate_and_channels(ok, rate, channels):
    write_tone("prompt.wav", 0.05, rate, channels)
    ok("continue", "prompt.wav", "out.wav", "--seconds", 0.08, "--level", 2)
    assert len(read("out.wav")) == 3528


def test_continued_audio_opens_with_the_prompt_as_the_vqvae_hears_it(ok):
    write_tone("prompt.wav", 0.05)
    ok("encode", "prompt.wav", "prompt.safetensors")
    ok("decode", "prompt.safetensors", "heard.wav", "--level", 2)
    ok("continue", "prompt.wav", "out.wav", "--seconds", 0.12, "--level", 2)
    ok("continue", "prompt.safetensors", "codes.wav", "--seconds", 0.12, "--level", 2)
    assert Path("out.wav").read_bytes() == Path("codes.wav").read_bytes()
    codes, known = runs.load_codes(Path("out.run/codes.safetensors")), runs.load_codes(Path("prompt.safetensors"))
    assert torch.equal(codes[2][:, : known[2].shape[1]], known[2])


def test_prompt_seconds_cut_audio_and_runs(ok):
    write_tone("prompt.wav", 0.2)
    out = ok("continue", "prompt.wav", "a.wav", "--seconds", 0.08, "--level", 2, "--prompt-seconds", 0.05)
    assert "0.05 s of prompt.wav" in out
    ok("continue", "a.run", "b.wav", "--seconds", 0.08, "--level", 2, "--prompt-seconds", 0.06, "--seed", 9)
    a, b = (runs.load_codes(Path(f"{name}.run/codes.safetensors"))[2] for name in "ab")
    # 0.06 s are 20.7 codes.
    assert torch.equal(a[:, :21], b[:, :21])
    assert not torch.equal(a, b)
    # One code at least.
    ok("continue", "a.run", "c.wav", "--seconds", 0.08, "--level", 2, "--prompt-seconds", 1e-9, "--seed", 9)


def test_upsample_keeps_the_coarsest_level_or_those_asked_for(ok, fails):
    ok("sample", "a.wav", "--seconds", SECONDS)
    out = ok("upsample", "a.run", "b.wav", "--seed", 1)
    assert "level 2 (a.run holds level 0, 1, 2)" in out
    ok("upsample", "a.run/codes.safetensors", "c.wav", "--from-level", 1, "--seed", 1, "--seconds", SECONDS)
    a, b, c = (runs.load_codes(Path(f"{name}.run/codes.safetensors")) for name in "abc")
    assert [torch.equal(x, y) for x, y in zip(a, b, strict=True)] == [False, False, True]
    assert [torch.equal(x, y) for x, y in zip(a, c, strict=True)] == [False, True, True]
    assert len(read("b.wav")) == len(read("c.wav")) == SAMPLES
    assert "level 0 is kept and 0 is asked for" in fails("upsample", "a.run", "d.wav", "--from-level", 0)
    assert "holds level" in fails("upsample", "a.run", "d.wav", "--from-level", 3)


def test_one_of_several_pieces_goes_on(ok, fails):
    ok("sample", "many.wav", "--seconds", 0.05, "--level", 2, "--samples", 3, "--seed", 5)
    ok("sample", "whole.wav", "--seconds", 0.05, "--samples", 3, "--seed", 5)
    # The noise of the same piece, too.
    out = ok("upsample", "many.run", "one.wav", "--item", 2, "--seed", 5)
    assert "piece 2 of many.run" in out
    assert Path("one.wav").read_bytes() == Path("whole-2.wav").read_bytes()
    ok("continue", "many.run", "longer.wav", "--item", 1, "--seconds", 0.08, "--level", 2)
    assert runs.load_codes(Path("longer.run/codes.safetensors"))[2][0, :17].tolist() == (
        runs.load_codes(Path("many.run/codes.safetensors"))[2][1, :17].tolist()
    )
    assert "pieces 0 to 2" in fails("upsample", "many.run", "two.wav", "--item", 3)
    Path("two-1.wav").touch()
    assert "two-1.wav exists" in fails("upsample", "many.run", "two.wav")
    write_tone("tone.wav", 0.1)
    assert "codes of several pieces" in fails("continue", "tone.wav", "two.wav", "--seconds", 1, "--item", 0)


def test_upsample_composes_nothing_new(ok, fails):
    ok("sample", "a.wav", "--seconds", 0.05, "--level", 2)
    message = fails("upsample", "a.run", "b.wav", "--level", 1, "--seconds", 0.06)
    assert "covers 0.052 s, not 0.06 s" in message and "fastjukebox continue" in message
    ok("upsample", "a.run", "b.wav", "--level", 1, "--seconds", 0.04)


def test_upsample_of_a_run_that_was_stopped_covers_what_there_is(ok, fails):
    ok("sample", "a.wav", "--seconds", 0.05, "--level", 2)
    stopped = runs.Run.open(Path("a.run"))
    stopped.save([codes[:, :9] for codes in stopped.load()])
    out = ok("upsample", "a.run", "b.wav", "--level", 1, "--seed", 2)
    assert "audio    0.03 s" in out and len(read("b.wav")) == 9 * 128
    assert torch.equal(runs.Run.open(Path("b.run")).load()[2], stopped.load()[2])
    assert "covers 0.026 s, not 0.05 s" in fails("upsample", "a.run", "c.wav", "--level", 1, "--seconds", 0.05)


def test_levels_have_the_same_pieces(ok, fails):
    runs.save_codes(Path("mixed.safetensors"), [torch.ones(count, 64, dtype=torch.long) for count in (1, 3, 1)])
    for name, *options in (("upsample", "--level", 1), ("decode",), ("continue", "--seconds", 1)):
        told = fails(name, "mixed.safetensors", "a.wav", *options)
        assert "different numbers of pieces: 1 at level 0, 3 at level 1, 1 at level 2" in told
    # Of levels that hold nothing no number matters.
    runs.save_codes(Path("two.safetensors"), [torch.ones(n, c, dtype=torch.long) for n, c in ((1, 0), (5, 0), (2, 9))])
    ok("upsample", "two.safetensors", "a.wav", "--level", 1)
    assert Path("a-1.wav").exists() and not Path("a-2.wav").exists()


def test_the_way_on_is_one_for_a_shell(ok, fails):
    short = ("--seconds", 0.03, "--level", 2, "--run=-a b.run")
    ok("sample", "a.wav", *short)
    assert "`fastjukebox resume './-a b.run'`" in fails("sample", "b.wav", *short)
    ok("resume", "./-a b.run")


def test_a_prompt_is_as_long_as_its_finest_level(ok, fails):
    write_codes("top.safetensors", (0, 0, 16))
    out = ok("continue", "top.safetensors", "a.wav", "--seconds", 0.06, "--level", 1)
    assert "given    0.05 s of top.safetensors" in out
    assert "leaves nothing" in fails("continue", "top.safetensors", "b.wav", "--seconds", 0.04, "--level", 1)
    write_codes("bottom.safetensors", (256, 0, 0))
    assert "holds level 0" in fails("continue", "bottom.safetensors", "b.wav", "--seconds", 0.06, "--level", 1)


def test_upsample_takes_the_codes_of_the_original(ok):
    zs = [torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 0, dtype=torch.long), torch.arange(16)[None]]
    torch.save({"zs": zs}, "data.pth.tar")
    ok("upsample", "data.pth.tar", "a.wav", "--level", 1, "--seconds", 0.01)
    assert len(read("a.wav")) == 441
    assert torch.equal(runs.load_codes(Path("a.run/codes.safetensors"))[2], zs[2])


def test_encode_and_decode_go_round(ok, fails):
    write_tone("tone.wav", 0.1)
    assert "wrote" in ok("encode", "tone.wav", "tone.safetensors")
    codes = runs.load_codes(Path("tone.safetensors"))
    assert [tensor.shape[1] for tensor in codes] == [34 * 16, 34 * 4, 34]
    ok("decode", "tone.safetensors", "again.wav")
    assert len(read("again.wav")) == 34 * 128
    assert "--overwrite" in fails("decode", "tone.safetensors", "again.wav")
    assert "--overwrite" in fails("encode", "tone.wav", "tone.safetensors")
    assert "--level 3" in fails("decode", "tone.safetensors", "b.wav", "--level", 3)


def test_silence_is_music_too(ok):
    soundfile.write("silence.wav", np.zeros(4410), RATE)
    ok("encode", "silence.wav", "silence.safetensors")
    ok("continue", "silence.wav", "out.wav", "--seconds", 0.12, "--level", 2)


def test_info_names_versions_devices_decoders_and_the_model(ok):
    out = ok("info")
    for word in ("torch", "cpu", "decoder eager", "can run on cpu", "wav flac ogg", "3 layers of width 32", "F32"):
        assert word in out, out
    native = re.search("^decoder native +(.*)$", out, re.M)[1]
    assert re.fullmatch("can run on cpu, with (portable|avx.*)|cannot run on cpu: .+", native), native


def test_plot_draws_two_panels(ok, fails):
    pytest.importorskip("librosa")
    write_tone("tone.wav", 0.05)
    ok("sample", "a.wav", "--seconds", 0.05, "--level", 2, "--plot", "a.png", "--plot-beside", "tone.wav")
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
    assert ".png" in fails("sample", "b.wav", "--plot", "b.jpg")
    assert "no such file" in fails("sample", "b.wav", "--plot", "b.png", "--plot-beside", "none.wav")


def test_plot_without_its_libraries_says_how_to_get_them(fails, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'fastjukebox[plot]'" in fails("sample", "a.wav", "--plot", "a.png")


@pytest.mark.parametrize(
    ("word", "args"),
    [
        ("seconds", ["--seconds", "0"]),
        ("seconds", ["--seconds", "-1"]),
        ("seconds", ["--seconds", "1e9"]),
        ("seconds", ["--seconds", "nan"]),
        ("seconds", ["--seconds", "soon"]),
        ("hop_fraction", ["--hop-fraction", "0"]),
        ("hop fraction 0.3", ["--hop-fraction", "0.3"]),
        ("seed", ["--seed", "-1"]),
        ("seed", ["--seed", str(2**64)]),
        ("temperature", ["--temperature", "0"]),
        ("temperature", ["--temperature", "nan"]),
        ("temperature", ["--temperature", "hot"]),
        ("top_k", ["--top-k", "-1"]),
        ("top_p", ["--top-p", "0"]),
        ("top_p", ["--top-p", "1.5"]),
        ("num_samples", ["--samples", "0"]),
        ("level 3", ["--level", "3"]),
        ("one of .wav", ["a.mp3"]),
        ("does not exist", ["nowhere/a.wav"]),
        pytest.param("cannot be written", ["/proc/a.wav"], marks=pytest.mark.linux),
        pytest.param("run directory", ["--run", "/proc/a.run"], marks=pytest.mark.linux),
        ("stream", ["-"]),
        ("backend", ["--backend", "magic"]),
        ("device", ["--device", "toaster"]),
        ("--sedonds", ["--sedonds", "3"]),
    ],
)
def test_bad_requests(fails, word, args):
    assert word in fails("sample", *args)


def test_unknown_commands_and_models(capfd):
    for args, word in (
        (["smaple"], "smaple"),
        (["sample", "--model", "nothere"], "demo"),
        (["info", "--model", "x"], "x"),
    ):
        assert main(args) == 2
        err = capfd.readouterr().err
        assert word in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    "name", ["missing.wav", "empty.wav", "corrupt.wav", "nan.wav", "inf.wav", "no-samples.wav", "."]
)
def test_bad_audio(fails, name):
    Path("empty.wav").touch()
    Path("corrupt.wav").write_bytes(b"RIFF" + bytes(range(256)))
    for kind in ("nan", "inf"):
        soundfile.write(f"{kind}.wav", np.full(4410, float(kind), dtype=np.float32), RATE, "FLOAT")
    soundfile.write("no-samples.wav", np.zeros(0), RATE)
    fails("continue", name, "out.wav", "--seconds", 1)
    fails("encode", name, "out.safetensors")


def test_a_prompt_must_leave_something_to_sample(fails, ok):
    write_tone("prompt.wav", 0.1)
    assert "--prompt-seconds" in fails("continue", "prompt.wav", "out.wav", "--seconds", 0.05)
    assert "--prompt-seconds" in fails("continue", "prompt.wav", "out.wav", "--seconds", 1, "--prompt-seconds", "nan")
    ok("encode", "prompt.wav", "prompt.safetensors")
    assert "leaves nothing" in fails("continue", "prompt.safetensors", "out.wav", "--seconds", 0.05)
    write_tone("short.wav", 0.001)
    assert "top-level code" in fails("continue", "short.wav", "out.wav", "--seconds", 1)


def test_bad_codes(fails):
    write_codes("high.safetensors", (0, 0, 16), value=64)
    write_codes("low.safetensors", (0, 0, 16), value=-1)
    write_codes("two.safetensors", (0, 16))
    write_codes("empty.safetensors", (0, 0, 0))
    Path("corrupt.safetensors").write_bytes(b"codes")
    Path("corrupt.pth.tar").write_bytes(b"codes")
    for name in ("high", "low"):
        assert "0 to 36" in fails("upsample", f"{name}.safetensors", "out.wav")
        assert "0 to 36" in fails("decode", f"{name}.safetensors", "out.wav")
    assert "2 levels" in fails("upsample", "two.safetensors", "out.wav")
    for name in ("empty.safetensors", "corrupt.safetensors", "corrupt.pth.tar", "missing.safetensors"):
        fails("upsample", name, "out.wav")
        fails("continue", name, "out.wav", "--seconds", 1)
        fails("decode", name, "out.wav")


def test_resume_replaces_no_other_file_unasked(ok, fails):
    ok("sample", "a.wav", "--seconds", 0.03, "--level", 2)
    Path("mine.wav").write_bytes(b"mine")
    assert "mine.wav exists" in fails("resume", "a.run", "--output", "mine.wav")
    assert Path("mine.wav").read_bytes() == b"mine"
    ok("resume", "a.run", "--output", "mine.wav", "--overwrite")
    assert Path("mine.wav").read_bytes() == Path("a.wav").read_bytes()
    # Its own it writes anew.
    Path("a.wav").unlink()
    ok("resume", "a.run")
    ok("resume", "a.run")


@pytest.mark.linux
def test_a_stream_that_cannot_be_written_says_how_to_go_on(tiny_model, tmp_path):
    run = tmp_path / "s.run"
    args = ["sample", "-", "--stream", "--seconds", "0.02", "--model", tiny_model, "--run", run, "-q"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command(*args), stdout=full, stderr=subprocess.PIPE, text=True)
    message = "cannot write to stdout: No space left on device; the codes so far are saved"
    assert done.returncode == 2
    assert done.stderr == f"fastjukebox: error: {message}: `fastjukebox resume {run}` --output FILE\n"


def test_resume_needs_a_run_with_its_weights(ok, fails, tiny_model):
    assert "holds no run" in fails("resume", "nothere")
    ok("sample", "a.wav", "--seconds", 0.03, "--level", 2)
    path = Path("a.run/request.json")
    request = json.loads(path.read_text())
    path.write_text(json.dumps(request | {"fingerprint": "other"}))
    assert "other weights" in fails("resume", "a.run")
    path.write_text("{")
    assert "cannot be read" in fails("resume", "a.run")
