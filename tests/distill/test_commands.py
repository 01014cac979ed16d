"""`fastjukebox-train` from nothing to a stack that samples, and what it says to mistakes."""

import contextlib
import dataclasses
import errno
import json
import os
import re
import shutil

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from fastjukebox.distill import commands
from fastjukebox.distill import work as work_module
from fastjukebox.distill.commands import train
from fastjukebox.distill.dry_run import describe
from fastjukebox.distill.export import export
from fastjukebox.distill.parallel import Processes
from fastjukebox.distill.pipeline import Stage, StageFailed, stages
from fastjukebox.distill.presets import PRESETS
from fastjukebox.distill.systems import SYSTEMS
from fastjukebox.distill.trainer import TrainingDiverged
from fastjukebox.distill.work import NotTrained, Work
from fastjukebox.engine import checkpoint
from fastjukebox.engine.jukebox import Jukebox
from fastjukebox.engine.sampler import SamplingParams
from safetensors import safe_open


def test_later_commands_take_the_folders_preset_and_seed(stack, tmp_path, refused):
    done = CliRunner().invoke(train, ["eval", "--work", str(stack), "--level", "2", "--device", "auto"])
    assert done.exit_code == 0 and f"{stack}: preset tiny, seed 0; on c" in done.output
    for option, value in (("--preset", "demo"), ("--seed", "3")):
        assert "was begun with" in refused(stack, "eval", option, value)
    (tmp_path / "preset.json").write_text("{")
    assert "preset.json is damaged" in refused(tmp_path, "eval")


@pytest.mark.parametrize("device", ["foo", "cuda:99"])
def test_a_device_that_is_not_there_is_one_line(tmp_path, refused, device):
    assert f"--device {device} cannot be used" in refused(tmp_path, "corpus", "--device", device)


def test_without_audio_or_corpus_the_way_is_told(tmp_path, refused):
    assert "--audio FOLDER, or run `fastjukebox-train corpus`" in refused(tmp_path / "w", "vqvae")


def test_an_export_replaces_nothing_unasked(stack, tmp_path, refused):
    words = ["export", "--system", "teacher-72", "--out", str(tmp_path / "out")]
    options = ["--work", str(stack), "--device", "cpu"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert CliRunner().invoke(train, [*words, *options]).exit_code == 0
    assert "--overwrite" in refused(stack, *words)
    # A file without a config is one too.
    (tmp_path / "out" / "config.json").unlink()
    assert "vqvae.safetensors exists" in refused(stack, *words)
    assert CliRunner().invoke(train, [*words, *options, "--overwrite"]).exit_code == 0
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert not list((tmp_path / "out").glob(".*"))


def test_an_export_that_fails_leaves_the_checkpoint_of_before(stack, tmp_path, monkeypatch):
    work, save_network = Work(stack, "tiny"), checkpoint.save_network
    export(work, "teacher-72", tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(path, network, **settings):
        if path.name == "prior_1.safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_network(path, network, **settings)

    monkeypatch.setattr(checkpoint, "save_network", full)
    for out in (tmp_path, tmp_path / "new"):
        with pytest.raises(OSError, match="No space left"):
            export(work, "teacher-72", out, overwrite=True)
    assert not any((tmp_path / "new").iterdir())
    (tmp_path / "new").rmdir()
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_second_stage_may_have_a_rate_of_its_own(stack, monkeypatch):
    demo, names = PRESETS["demo"], ("student-18-layers", "student-18", "student-24")
    rates = {level: [demo.rate(SYSTEMS[name], level) for name in names] for level in range(3)}
    assert rates == {0: [0.3, 0.08, 0.08], 1: [0.5, 0.12, 0.12], 2: [1.0, 1.0, 1.0]}
    assert PRESETS["demo-new-layers"].rate(SYSTEMS["student-18"], 1) == 1.0
    tiny = PRESETS["tiny"]
    epochs = tuple(dataclasses.replace(each, prediction_rate=0.1) for each in tiny.epochs)
    monkeypatch.setitem(PRESETS, "tiny", dataclasses.replace(tiny, epochs=epochs))
    work, trained = Work(stack, "tiny"), []

    def train_prior(folder, objective, windows, steps, settings, processes):
        trained.append(settings)
        raise TrainingDiverged

    monkeypatch.setattr(work_module, "train_prior", train_prior)
    lines = []
    for name, rate in (("student-18-layers", 1.0), ("student-18", 0.1)):
        with pytest.raises(TrainingDiverged):
            work.train_system(name, 2)
        lines += describe(work, name, 2)
        assert trained[-1] == tiny.prior.slower(rate)
    assert "learning rate 0.0015 (0.02 of matrices)" in lines[0]
    assert "learning rate 0.00015 (0.002 of matrices)" in lines[1]


def test_an_exported_stack_samples(stack, run, tmp_path):
    done = run("export", "--system", "teacher-72", "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    result = Jukebox.from_pretrained(tmp_path).sample(SamplingParams(seconds=0.1, seed=1))
    assert result.audio.shape[-1] == 4410 and bool(torch.isfinite(torch.as_tensor(result.audio)).all())


def test_a_stack_shares_files_with_its_base(stack, run, tmp_path):
    base, out = tmp_path / "base", tmp_path / "base" / "student"
    for name, words in (("teacher-72", ["--out", str(base)]), ("student-18", ["--out", str(out), "--base", str(base)])):
        done = run("export", "--system", name, *words)
        # Levels 0 and 1 of student-18 are not trained here.
        assert (done.exit_code == 0) == (name == "teacher-72"), done.output
    work = Work(stack, "tiny")
    export(work, "teacher-72", out, base, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["config.json"]
    params = SamplingParams(seconds=0.1, seed=1)
    whole, shared = (Jukebox.from_pretrained(folder).sample(params) for folder in (base, out))
    assert torch.equal(torch.as_tensor(whole.audio), torch.as_tensor(shared.audio))


def test_a_student_shares_its_teachers_embeddings_with_it(stack, tmp_path, monkeypatch):
    work, base, out = Work(stack, "tiny"), tmp_path / "base", tmp_path / "base" / "student"
    export(work, "teacher-72", base)
    # Levels 0 and 1 of student-18 are not trained here.
    monkeypatch.setattr(work, "source", lambda name, level, own=None: name if level == 2 else "teacher-72")
    export(work, "student-18", out, base)
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "prior_2.safetensors"]
    with safe_open(out / "prior_2.safetensors", "pt") as file:
        assert all(name.startswith("layers.") for name in file.keys())  # noqa: SIM118
    trained, found = work.prior("student-18", 2).half().state_dict(), checkpoint.load_prior(out, 2, dtype=torch.float16)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in found.state_dict().items())
    # Exported again without a base it is whole.
    export(work, "student-18", out, overwrite=True)
    whole = checkpoint.load_prior(out, 2, dtype=torch.float16).state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in whole.items())
    assert Jukebox.from_pretrained(out).sample(SamplingParams(seconds=0.1, seed=1)).audio.shape[-1] == 4410


def test_a_stack_may_take_levels_from_student_18(stack, refused, tmp_path):
    work = Work(stack, "tiny")
    assert [work.source("teacher-72", level) for level in work.levels] == ["teacher-72"] * 3
    assert [work.source("teacher-72", level, [2]) for level in work.levels] == [
        "teacher-72",
        "student-18",
        "student-18",
    ]
    error = refused(stack, "export", "--system", "teacher-72", "--level", "2", "--out", str(tmp_path))
    assert "student-18 --level 0" in error


def test_the_card_tells_every_run(stack, run, tmp_path):
    done = run("card", "--out", str(tmp_path / "CARD.md"))
    assert done.exit_code == 0, done.output
    text = (tmp_path / "CARD.md").read_text()
    for words in ("| teacher-72 | 2 | 9 |", "| teacher-72, before it grew | 2 | 3 |", "| student-18 | 2 | 3 |"):
        assert words in text
    assert "| plain-18" not in text and max(map(len, text.splitlines())) < 400


def test_eval_tells_bits_and_agreement(stack, run, tmp_path):
    done = run("eval", "--level", "2", "--windows", "2", "--json", str(tmp_path / "f.jsonl"))
    assert done.exit_code == 0, done.output
    rows = {row["system"]: row for row in map(json.loads, (tmp_path / "f.jsonl").read_text().splitlines())}
    assert set(rows) == {"teacher-72", "student-18-layers", "student-18"}
    assert all(0 < row["bits"] < 6 for row in rows.values())
    assert "kl" not in rows["teacher-72"] and rows["student-18"]["kl"] >= 0
    assert 0 < rows["student-18"]["acceptance"] <= 1 and rows["student-18"]["depth"] == 3
    # A student's two stages take as many steps as a plain one.
    work = Work(stack, "tiny")
    epoch = work.windows(2).epoch_steps(work.preset.prior.batch)
    plain = work.preset.steps(SYSTEMS["plain-18"], 2, epoch)
    assert rows["student-18-layers"]["steps"] + rows["student-18"]["steps"] == pytest.approx(plain, abs=1)


def test_what_is_done_is_not_done_again(stack, run):
    before = {path: path.stat().st_mtime_ns for path in stack.rglob("state.pt")}
    assert run("prior", "--system", "teacher-72").exit_code == 0 and run("vqvae").exit_code == 0
    assert before == {path: path.stat().st_mtime_ns for path in stack.rglob("state.pt")}


def test_dry_run_tells_parameters_memory_and_steps(stack, run):
    done = run("distill", "--system", "student-24", "--dry-run")
    lines = done.stdout.splitlines()
    assert done.exit_code == 0 and len(lines) == 3
    assert "6 layers of width 16" in lines[0] and "parameters" in lines[0] and "GB" in lines[0] and "steps" in lines[0]


def test_mistakes_get_one_line_that_says_what_to_do(stack, run, refused):
    error = refused(stack, "distill", "--system", "student-24")
    assert "fastjukebox-train distill --system student-24-layers --level 2" in error
    with pytest.raises(ValueError, match="choose another folder"):
        Work(stack, "demo")
    with pytest.raises(NotTrained, match="encode"):
        Work(stack.parent / "other", "tiny").codes()
    assert run("prior", "--system", "teacher-72", "--level", "7").exit_code == 2


def test_eval_of_nothing_is_an_error(tmp_path, refused):
    assert "no system is trained" in refused(tmp_path / "w", "eval")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (StageFailed("codes ended with exit code 1"), "error: codes ended with exit code 1"),
        (
            torch.cuda.OutOfMemoryError("tried 20 MiB.\nGPU 0"),
            "error: not enough memory; .*--sharded.* (tried 20 MiB. GPU 0)",
        ),
        (MemoryError(), "error: not enough memory; .*--sharded.* (no more)"),
    ],
)
def test_a_stage_that_failed_is_told_in_one_line(tmp_path, monkeypatch, refused, error, told):
    def fail(*_):
        raise error

    monkeypatch.setattr(commands, "run_all", fail)
    assert re.fullmatch(told.replace("(", r"\(").replace(")", r"\)"), refused(tmp_path / "w", "stack"))


def test_dry_run_tells_the_network_that_a_teacher_grows_from(stack, run):
    lines = run("prior", "--system", "teacher-72", "--dry-run").stdout.splitlines()
    # Level 1 grows from none.
    assert [line.split(":")[0] for line in lines] == [
        "teacher-72 level 2, before it grows",
        "teacher-72 level 2",
        "teacher-72 level 1",
        "teacher-72 level 0, before it grows",
        "teacher-72 level 0",
    ]
    work = Work(stack, "tiny")
    for line, found in ((lines[0], work.shallow_figures(2)), (lines[1], work.figures("teacher-72", 2))):
        assert f"{found['depth']} layers" in line and f"; {found['steps']} steps" in line


@pytest.mark.parametrize("words", [("vqvae",), ("prior", "--system", "plain-18"), ("stack",)])
def test_dry_run_leaves_nothing(tmp_path, words):
    folder = tmp_path / "w"
    options = ["--work", str(folder), "--preset", "tiny", "--device", "cpu", "--dry-run"]
    done = CliRunner().invoke(train, [words[0], *options, *words[1:]])
    assert done.exit_code == 0 and not folder.exists(), done.output
    told = [line for line in done.output.splitlines() if "parameters" in line]
    assert len(told) >= 3 and all("GB" in line and "steps" in line for line in told)


def test_a_stack_has_both_students_at_every_level(stack, run):
    done = run("stack", "--dry-run")
    assert done.exit_code == 0, done.output
    for level in range(3):
        for name in ("teacher-72", "student-24", "student-18"):
            assert f"{name} level {level}:" in done.output
        assert (f"plain-24 level {level}:" in done.output) == (level == 2)


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """What a user may have: 30 songs in folders, one of them short, a format that cannot be read, a picture."""
    folder = tmp_path_factory.mktemp("music")
    (folder / "album").mkdir()
    for index in range(30):
        tone = np.sin(np.arange(400 if index == 7 else 9000) * (0.02 + 0.001 * index))
        soundfile.write(folder / "album" / f"{index}.flac", 0.3 * tone, 44100)
    (folder / "apple.m4a").write_bytes(bytes(100))
    (folder / "album" / "cover.jpg").write_bytes(b"")
    return folder


def test_a_users_folder_is_told_and_a_share_held_out(music, tmp_path):
    def run(*words):
        options = ["--work", str(tmp_path / "w"), "--preset", "tiny", "--device", "cpu"]
        done = CliRunner().invoke(train, [words[0], *options, *words[1:]])
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    told = run("vqvae", "--audio", str(music))
    # Not the number of the corpus; once, for all levels.
    assert told.count("28 to train on, 2 held out; 1 skipped, 1 other files") == told.count("skipped apple.m4a") == 1
    told = run("encode", "--audio", str(music))
    assert "28 to train on, 2 held out; 1 skipped, 1 other files" in told and "skipped apple.m4a" in told
    told = run("prior", "--system", "plain-18", "--level", "2")
    assert "skipped apple.m4a" in told and "1 are shorter than that and left out" in told


def test_the_share_held_out_can_be_chosen(music, tmp_path, refused):
    options = ["--work", str(tmp_path), "--preset", "tiny", "--device", "cpu"]
    words = ["vqvae", *options, "--level", "2", "--audio", str(music), "--held-out", "0.5"]
    assert "15 to train on, 15 held out" in CliRunner().invoke(train, words).output
    done = CliRunner().invoke(train, ["vqvae", *options, "--held-out", "0.5"])
    assert done.exit_code == 2 and "--audio" in done.output
    only = tmp_path / "only"
    only.mkdir()
    (only / "song.flac").write_bytes((music / "album" / "0.flac").read_bytes())
    error = refused(tmp_path, "vqvae", "--level", "1", "--audio", str(only))
    assert "it takes two songs or more" in error


def test_codes_with_another_share_held_out_are_told(music, tmp_path, capsys):
    work = Work(tmp_path / "w", "tiny")
    for level in work.levels:
        work.train_vqvae(level, music, 0.5)
    work.encode(music, 0.5)
    assert "was trained on" not in capsys.readouterr().out
    shutil.rmtree(tmp_path / "w" / "codes")
    work.encode(music, 0.05)
    assert capsys.readouterr().out.count("others of them held out (--held-out)") == 3


def test_a_vqvae_goes_on_with_the_songs_that_it_was_begun_with(music, tmp_path, refused):
    work = Work(tmp_path / "w", "tiny")
    figures = work.train_vqvae(2, music, 0.05)
    (work.run_folder("vqvae", 2) / "figures.json").unlink()
    other = tmp_path / "other"
    shutil.copytree(music / "album", other)
    words = ["vqvae", "--level", "2", "--audio"]
    assert "begun with audio '30 songs" in refused(tmp_path / "w", *words, str(other))
    # The same songs elsewhere are the same.
    shutil.copytree(music, tmp_path / "moved")
    assert Work(tmp_path / "w", "tiny").train_vqvae(2, tmp_path / "moved", 0.05)["snr_db"] == figures["snr_db"]


def test_jobs_are_not_for_torchrun(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "processes", lambda *_: contextlib.nullcontext(Processes(0, 2)))
    options = ["--work", str(tmp_path), "--preset", "tiny", "--device", "cpu", "--jobs", "2"]
    done = CliRunner().invoke(train, ["stack", *options])
    assert done.exit_code == 2 and "leave it out under torchrun" in done.output


def test_stages_name_everything_that_they_need():
    class Nothing:
        levels = range(2, -1, -1)

    needs = stages(Nothing(), {2: tuple(SYSTEMS), 0: ("student-18",)})
    assert [stage for stage in needs if stage.level == 0 and stage.name != "vqvae"] == [
        Stage("teacher-72", 0),
        Stage("student-18-layers", 0),
        Stage("student-18", 0),
    ]
    assert len([stage for stage in needs if stage.level == 2]) == 8
    seen: set[Stage] = set()
    for stage, before in needs.items():
        assert seen.issuperset(before), f"{stage} stands before what it needs"
        seen.add(stage)
