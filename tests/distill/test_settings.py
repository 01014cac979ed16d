"""Settings by name, and a work folder that keeps those that were set."""

import dataclasses
import json

import pytest
from click.testing import CliRunner
from fastjukebox.distill.commands import train
from fastjukebox.distill.presets import PRESETS, Preset
from fastjukebox.distill.settings import changed, differences, parsed, plain
from fastjukebox.distill.work import Work

TINY = PRESETS["tiny"]


def test_settings_are_set_by_name():
    found = changed(
        TINY,
        [
            "distillation.temperature=2",
            "distillation.mapping=first",
            "epochs.prediction=3",
            "epochs.2.prediction=0.5",
            "epochs.0.plain=null",
            "prior.matrix_learning_rate=null",
            "prior.computing.recompute=true",
            "depths.24=3",
            "config.priors.2.depth=12",
        ],
    )
    assert found.distillation == dataclasses.replace(TINY.distillation, temperature=2.0, mapping="first")
    assert [epochs.prediction for epochs in found.epochs] == [3.0, 3.0, 0.5]
    assert found.prior.matrix_learning_rate is None and found.prior.computing.recompute
    assert found.depths == {72: 9, 24: 3, 18: 3}
    assert [prior.depth for prior in found.config.priors] == [9, 9, 12]
    assert changed(TINY, ["distillation.mapping=last"]) == TINY


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("prior.speed=1", "'speed' is none of batch, micro_batch, learning_rate, matrix_learning_rate"),
        ("temperature=2", "none of config, corpus, crop"),
        ("epochs.3.layers=1", "'3' is none of 0, 1, 2"),
        ("prior.batch=2.5", "prior.batch must be a whole number; not 2.5"),
        ("prior.batch=true", "prior.batch must be a whole number; not true"),
        ("distillation.temperature=warm", 'distillation.temperature must be a number; not "warm"'),
        ("distillation.temperature=NaN", "distillation.temperature must be a number"),
        ("distillation.temperature=0", "temperature"),
        ("distillation.copy_layers=1", "distillation.copy_layers must be true or false; not 1"),
        ("distillation.mapping=second", "distillation.mapping must be last, middle, first"),
        ("prior.computing.precision=fp8", "precision must be fp32"),
        ("prior.batch.size=2", "nothing is below prior.batch"),
        ("prior.batch", "NAME=VALUE"),
    ],
)
def test_a_setting_that_cannot_be_is_told(assignment, told):
    with pytest.raises(ValueError) as refusal:
        changed(TINY, [assignment])
    assert told in str(refusal.value)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_json(name):
    values = json.loads(json.dumps(plain(PRESETS[name])))
    assert parsed(Preset, values, "") == PRESETS[name]
    assert not list(differences(values, plain(PRESETS[name])))


def run(folder, *words):
    options = ["--work", str(folder), "--preset", "tiny", "--device", "cpu", "--threads", "1"]
    return CliRunner().invoke(train, [words[0], *options, *words[1:]])


def test_a_folder_keeps_what_was_set_for_all_its_commands(tmp_path):
    folder = tmp_path / "w"
    sets = ("--set", "corpus.songs=2", "--set", "vqvae.steps=2", "--set", "epochs.layers=0.02")
    assert run(folder, "corpus", *sets[:2]).exit_code == 0
    # No run has begun, and the corpus is the same.
    assert run(folder, "vqvae", *sets).exit_code == 0
    for words in (("encode",), ("prior", "--system", "teacher-72", "--level", "2", *sets[4:])):
        done = run(folder, *words)
        assert done.exit_code == 0 and "epochs.0.layers 0.02" in done.output, (done.output, done.exception)
    settings = json.loads((folder / "preset.json").read_text())["settings"]
    assert settings["corpus"]["songs"] == 2 and settings["distillation"] == plain(TINY.distillation)
    work = Work(folder, "tiny")
    assert len(work.codes().songs) == 2 and work.figures("vqvae", 2)["steps"] == 2
    other = ("distill", "--system", "student-18-layers", "--level", "2", "--set", "distillation.temperature=2")
    assert "was begun with distillation.temperature 1.0, not 2.0" in run(folder, *other, "--dry-run").exception.args[0]
    for words in (("eval", "--level", "2"), ("card", "--out", str(tmp_path / "CARD.md"))):
        assert run(folder, *words).exit_code == 0


def test_a_corpus_is_not_changed_after_it_was_made(tmp_path):
    assert run(tmp_path, "corpus", "--set", "corpus.songs=2").exit_code == 0
    assert "corpus.songs 2, not 4" in str(run(tmp_path, "corpus", "--set", "corpus.songs=4").exception)


def test_a_dry_run_shows_what_is_set(tmp_path):
    words = ("prior", "--system", "plain-18", "--level", "2", "--dry-run", "--set", "prior.learning_rate=0.25")
    done = run(tmp_path / "w", *words)
    assert "learning rate 0.25" in done.output and not (tmp_path / "w").exists()


def test_folders_of_before_have_a_preset_and_a_seed_only(tmp_path):
    (tmp_path / "preset.json").write_text('{"preset": "tiny", "seed": 7}')
    assert Work(tmp_path, "tiny", 7).preset == TINY
    Work(tmp_path, "tiny", 7).claim()
    assert json.loads((tmp_path / "preset.json").read_text()) == {"preset": "tiny", "seed": 7}
