"""What would go wrong in a work folder without a word: other songs, half a corpus, songs too short to measure on."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from fastjukebox.distill import work as work_module
from fastjukebox.distill.audio_folder import held_out_songs, scan
from fastjukebox.distill.card import card
from fastjukebox.distill.code_store import CodeStore
from fastjukebox.distill.commands import train
from fastjukebox.distill.growth import deepened
from fastjukebox.distill.objectives import LayerMatching, NextCode, SoftTargets
from fastjukebox.distill.presets import PRESETS
from fastjukebox.distill.prior import load_averaged
from fastjukebox.distill.settings import changed, plain
from fastjukebox.distill.student import new_student
from fastjukebox.distill.systems import system
from fastjukebox.distill.trainer import Progress
from fastjukebox.distill.work import Work
from fastjukebox.engine.prior import Prior


@pytest.fixture
def other_songs(stack, tmp_path):
    """A work folder whose codes are of songs by other names than its systems were trained on."""
    folder = tmp_path / "w"
    shutil.copytree(stack, folder)
    path = folder / "codes" / "manifest.json"
    manifest = json.loads(path.read_text())
    for song in manifest["songs"]:
        song["file"] = "other-" + song["file"]
    path.write_text(json.dumps(manifest))
    return folder


def test_systems_are_not_measured_on_songs_that_they_may_have_learned(other_songs, refused):
    level = ("--level", "2")
    for words in (
        ("eval", "--system", "teacher-72", *level),
        ("distill", "--system", "student-24-layers", *level),
    ):
        told = refused(other_songs, *words)
        assert "teacher-72/level_2 was trained on 3 songs" in told and "Encode the same songs again" in told
    (other_songs / "student-18-layers" / "level_2" / "figures.json").unlink()
    (other_songs / "teacher-72" / "level_2" / "figures.json").unlink()
    assert "was begun with codes" in refused(other_songs, "prior", "--system", "teacher-72", *level)


def test_runs_that_do_not_say_their_songs_are_measured_as_before(other_songs, run):
    path = other_songs / "teacher-72" / "level_2" / "run.json"
    made_with = json.loads(path.read_text())
    del made_with["codes"]
    path.write_text(json.dumps(made_with))
    Work(other_songs, "tiny").check_songs("teacher-72", 2)


def test_a_system_starts_from_and_is_trained_for_what_its_recipe_and_the_settings_say(stack, tmp_path, monkeypatch):
    shutil.copytree(stack, tmp_path / "w")
    work, begun = Work(tmp_path / "w", "tiny"), {}
    sets = ("prior.computing.recompute=true", "distillation.temperature=2", "distillation.copy_layers=true")
    sets += ("epochs.copied_rate=0.25", "epochs.prediction_rate=0.125", "epochs.layers=2")
    work.settings = changed(work.preset, sets)

    def train_prior(folder, objective, windows, steps, settings, processes):
        folder.mkdir(parents=True, exist_ok=True)
        begun[folder.parent.name] = objective, steps, settings.learning_rate / work.preset.prior.learning_rate
        return Progress(steps), {}

    monkeypatch.setattr(work_module, "train_prior", train_prior)
    teacher, config = work.prior("teacher-72", 2), work.preset.prior_config(system("plain-18"), 2)
    shallow = Prior(work.preset.shallow_config(2))
    load_averaged(work.run_folder("teacher-72", 2) / "shallow", shallow)
    starts = {
        "student-18-layers": (LayerMatching, 0.25, new_student(teacher, 3, copy_layers=True)),
        "student-18": (SoftTargets, 0.125, work.prior("student-18-layers", 2)),
        "teacher-72": (NextCode, 0.5, deepened(shallow, 9)),
    }
    # From nothing, and from the work's seed.
    torch.manual_seed(0)
    starts["plain-18"] = (NextCode, 1.0, Prior(config))
    epoch = work.windows(2).epoch_steps(work.preset.prior.batch)
    for name, (kind, rate, start) in starts.items():
        figures = work.train_system(name, 2)
        objective, steps, found = begun[name]
        assert type(objective) is kind and found == pytest.approx(rate) and objective.computing.recompute, name
        assert steps == work.preset.steps(system(name), 2, epoch) and figures["epochs"] == steps / epoch
        assert all(torch.equal(a, b) for a, b in zip(objective.prior.parameters(), start.parameters(), strict=True))
        trained = {name.partition(".")[0] for name, p in objective.prior.named_parameters() if p.requires_grad}
        if kind is not NextCode:
            # It has the teacher's embeddings.
            assert objective.settings == work.preset.distillation and trained == {"layers"}
        else:
            assert "token_embedding" in trained


def test_half_a_corpus_is_none(stack, tmp_path, refused):
    shutil.copytree(stack / "corpus", tmp_path / "corpus")
    (tmp_path / "corpus" / "labels.csv").unlink()
    for words in (("vqvae",), ("encode",)):
        assert "corpus is not complete" in refused(tmp_path, *words)


def test_a_level_that_is_done_has_heard_the_audio_that_is_named(stack, tmp_path, refused):
    other = tmp_path / "other"
    other.mkdir()
    for name in "ab":
        soundfile.write(other / f"{name}.wav", np.zeros(9000), 44100)
    shutil.copytree(stack, tmp_path / "w")
    assert "begun with audio" in refused(tmp_path / "w", "vqvae", "--level", "2", "--audio", str(other))
    options = ["--work", str(tmp_path / "w"), "--device", "cpu", "--held-out", "0.5"]
    assert "share of --audio" in CliRunner().invoke(train, ["vqvae", *options]).output
    # The corpus itself, with as many held out.
    assert Work(tmp_path / "w", "tiny").train_vqvae(2, tmp_path / "w" / "corpus")["steps"] == 3


def test_songs_that_hold_no_window_are_held_out_last(tmp_path):
    for index in range(8):
        soundfile.write(tmp_path / f"{index}.wav", np.zeros(500 if index < 6 else 5000), 44100)
    for seed in range(20):
        held_out = [song.path for song in scan(tmp_path, 1, seed, 0.1).songs if song.split == "held_out"]
        assert held_out[0] in ("6.wav", "7.wav")
        # More than there are long ones.
        assert sum(song.split == "held_out" for song in scan(tmp_path, 3, seed, 0.1).songs) == 3
    names = [str(index) for index in range(8)]
    assert held_out_songs(names, 3, 5) == held_out_songs(names, 3, 5, names) == held_out_songs(names, 3, 5, [])
    # One of those that hold a window is left to train on.
    assert all(len(held_out_songs(names, 3, seed, names[:2]) & {"0", "1"}) == 1 for seed in range(20))
    assert all(held_out_songs(names[:2], 1, seed, names[:1]) == {"1"} for seed in range(20))
    assert len(held_out_songs(names, 7, 0, names[:5])) == 7


def test_a_folder_of_before_keeps_its_settings_and_its_split(tmp_path):
    audio, folder = tmp_path / "audio", tmp_path / "w"
    audio.mkdir()
    for index in range(8):
        soundfile.write(audio / f"{index}.wav", np.zeros(5000 if index < 2 else 500), 44100)
    Work(folder, "tiny").train_vqvae(2, audio, 1)
    path = folder / "vqvae" / "level_2" / "audio.json"
    assert json.loads(path.read_text())["shortest"] == PRESETS["tiny"].longest_window
    before = {"audio": scan(audio, 1, 0).identity(44100)}
    assert before["audio"] != json.loads(path.read_text())["audio"], "the splits are to differ"
    path.write_text(json.dumps(before))
    assert Work(folder, "tiny").train_vqvae(2, audio, 1)["steps"] == 3
    # Settings that would be refused today open the folder, and can be mended before a run has begun.
    shutil.rmtree(folder / "vqvae")
    values = plain(changed(PRESETS["tiny"], ["vqvae.quantize_from=100"]))
    (folder / "preset.json").write_text(json.dumps({"preset": "tiny", "seed": 0, "settings": values}))
    held = Work(folder, "tiny")
    assert held.preset.vqvae[0].quantize_from == 100
    assert Work(folder, "tiny", settings=changed(held.preset, ["vqvae.quantize_from=0"])).preset.vqvae[0].steps == 3


def test_a_store_of_before_keeps_its_split(stack, tmp_path):
    shutil.copytree(stack, tmp_path / "w")
    path = tmp_path / "w" / "codes" / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest.pop("shortest") == PRESETS["tiny"].longest_window == 32 * 128 / 44100
    path.write_text(json.dumps(manifest))
    before = CodeStore(tmp_path / "w" / "codes").identity()
    assert Work(tmp_path / "w", "tiny").encode(tmp_path / "w" / "corpus").identity() == before


@pytest.mark.parametrize(
    ("assignments", "told"),
    [
        (["vqvae.quantize_from=3"], "vqvae.0.quantize_from 3 must be below vqvae.0.steps 3"),
        (["vqvae.1.steps=1"], "vqvae.1.quantize_from 1 must be below"),
        (["shallow_depth=4"], "shallow_depth: 4 layers do not grow to 9"),
        (["shallow_depth=12"], "shallow_depth: "),
        (["crop=1024"], "crop must be a multiple of 128, above 1024; not 1024"),
        (["crop=8200"], "crop must be a multiple of 128"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_before_anything_runs(tmp_path, assignments, told):
    with pytest.raises(ValueError) as refusal:
        Work(tmp_path / "w", "tiny", settings=changed(PRESETS["tiny"], assignments))
    assert told in str(refusal.value) and not (tmp_path / "w").exists()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_holds_together(name):
    PRESETS[name].check()
    # Together, in whatever order, though each alone would not do.
    changed(PRESETS[name], ["vqvae.steps=1", "vqvae.quantize_from=0"]).check()


@pytest.mark.parametrize(
    "assignment",
    [
        *("vqvae.batch=0", "vqvae.steps=0", "vqvae.learning_rate=0", "vqvae.codebook_decay=1", "vqvae.spectral=-1"),
        *("prior.measured_windows=0", "prior.learning_rate=0", "prior.learning_rate=-1", "prior.average_decay=2"),
        *("prior.matrix_learning_rate=0", "epochs.teacher=-1", "corpus.songs=0", "corpus.held_out=-1"),
        *("epochs.grown_rate=0", "epochs.prediction_rate=0", "epochs.draft=-1"),
    ],
)
def test_numbers_out_of_range_are_refused(assignment):
    name = assignment.partition("=")[0].rpartition(".")[2]
    with pytest.raises(ValueError, match=f"{name} must be "):
        changed(PRESETS["tiny"], [assignment])


def test_the_card_tells_the_settings(tmp_path):
    settings = changed(PRESETS["tiny"], ["prior.batch=1", "distillation.mapping=first"])
    work = Work(tmp_path, "tiny", settings=settings)
    assert "--preset tiny --seed 0 --set prior.batch=1 --set 'distillation.mapping=\"first\"'" in card(work)
    work.write_corpus()
    assert "stack --work WORK --preset tiny --seed 0 --set prior.batch=1" in card(work)
