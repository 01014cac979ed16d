"""A student that drafts codes for others: trained if asked for, like any other, and then it drafts."""

import shutil

import pytest
from click.testing import CliRunner
from fastjukebox.distill.commands import train
from fastjukebox.distill.presets import PRESETS
from fastjukebox.distill.systems import DRAFTS, SYSTEMS
from fastjukebox.engine import Jukebox, SamplingParams
from fastjukebox.engine.native_decoder import NativeDecoder
from fastjukebox.engine.speculative_decoder import SpeculativeDecoder
from fastjukebox.kernels import native_library


def test_rates_and_steps_are_those_of_what_a_system_starts_from():
    demo, tiny = PRESETS["demo"], PRESETS["tiny"]
    names = ("teacher-72", "student-18-layers", "student-18", "plain-18")
    assert [demo.rate(SYSTEMS[name], 0) for name in names] == [0.08, 0.3, 0.08, 1.0]
    assert [tiny.rate(SYSTEMS[name], 2) for name in names] == [0.5, 1.0, 1.0, 1.0]
    assert [tiny.rate(SYSTEMS[name], 1) for name in names] == [1.0] * 4
    assert [demo.steps(SYSTEMS[name], 2, 1000) for name in names] == [520, 100, 420, 930]
    # Plain ones have the steps of both stages, unless told.
    assert [tiny.steps(SYSTEMS[name], 2, 1000) for name in names] == [1000, 500, 500, 1000]
    assert [demo.shallow_steps(level, 1000) for level in range(3)] == [160, 1000, 1900]
    assert tiny.shallow_steps(1, 1000) == 0


def test_drafts_learn_at_the_full_rate_and_for_longer():
    demo, tiny, students = PRESETS["demo"], PRESETS["tiny"], ("student-18", "student-3")
    for level in range(3):
        assert [demo.rate(system, level) for system in DRAFTS.values()] == [1.0, 1.0]
        shared = [demo.steps((SYSTEMS | DRAFTS)[name], level, 1000) for name in students]
        assert shared[1] > 2 * shared[0]
    # Unless told, as long as students.
    assert tiny.steps(DRAFTS["student-3"], 2, 100) == tiny.steps(SYSTEMS["student-18"], 2, 100)


@pytest.mark.skipif(bool(native_library.missing()), reason="needs the native decoder")
def test_a_trained_draft_is_exported_and_drafts(stack, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(stack, work)

    def run(*words):
        done = CliRunner().invoke(train, [words[0], "--work", str(work), "--device", "cpu", *words[1:]])
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    assert "3 layers of width 16" in run("distill", "--system", "student-3", "--dry-run")
    for name in DRAFTS:
        run("distill", "--system", name)
    assert '"system": "student-3"' in run("eval", "--system", "student-3", "--level", "2")
    for name in ("teacher-72", "student-3"):
        run("export", "--system", name, "--out", str(tmp_path / name))
    prior, draft = (Jukebox.from_pretrained(tmp_path / name, "cpu").prior(0) for name in ("teacher-72", "student-3"))
    assert (prior.config.depth, draft.config.depth) == (9, 3)
    decoder = SpeculativeDecoder(NativeDecoder(prior, 1), NativeDecoder(draft, 1))
    # It keeps the teacher's conditioner.
    assert decoder.same_conditions
    params = SamplingParams(seconds=0.05, seed=1)
    results = [
        Jukebox.from_pretrained(tmp_path / "teacher-72", "cpu", backend="native", draft=draft).sample(params)
        for draft in (None, tmp_path / "student-3")
    ]
    assert results[0].audio.equal(results[1].audio)
