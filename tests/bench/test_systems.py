"""The benchmarks that listen, on a tiny stack: pieces, figures, and the same pieces when asked again."""

from __future__ import annotations

import pytest
import soundfile
import torch
from fastjukebox.bench import harness, samples, systems, table2
from fastjukebox.bench.samples import Pieces
from fastjukebox.distill import valence
from fastjukebox.distill.labels import Labelled, read_quadrants
from fastjukebox.distill.systems import SYSTEMS
from fastjukebox.distill.work import Work

PIECES = Pieces(2, 0.5)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Work:
    """Everything that student-18 needs, and at the top level plain-18."""
    torch.manual_seed(0)
    work = Work(tmp_path_factory.mktemp("work") / "w", "tiny")
    work.write_corpus()
    for level in work.levels:
        work.train_vqvae(level, work.corpus)
    work.encode(work.corpus)
    for level in work.levels:
        for name in ("teacher-72", "student-18-layers", "student-18", *(["plain-18"] if level == 2 else [])):
            work.train_system(name, level)
    return work


@pytest.mark.parametrize("name", ["corpus", "codes", "plain-18", "teacher-72"])
def test_pieces_are_files_of_the_length_asked_for_and_stay(work, name):
    files = samples.sampled(work, name, 1, PIECES)
    before = [path.read_bytes() for path in files]
    assert len(set(before)) == 2
    for path in files:
        assert abs(soundfile.info(path).duration - 0.5) < 1e-3
    times = [path.stat().st_mtime_ns for path in files]
    assert samples.sampled(work, name, 1, PIECES) == files
    assert [path.stat().st_mtime_ns for path in files] == times
    assert samples.sampled(work, name, 2, PIECES)[0].read_bytes() not in before


def test_a_system_of_the_top_level_takes_the_rest_from_its_student(work):
    plain, student = samples.model(work, "plain-18"), samples.model(work, "student-18")
    for level, same in ((0, True), (1, True), (2, False)):
        pairs = zip(plain.prior(level).parameters(), student.prior(level).parameters())
        assert all(torch.equal(a, b) for a, b in pairs) == same


def test_figures_of_samples(work):
    found = systems.listened(work, "student-18", 1, PIECES, lambda files: float(len(files)), None)
    assert found["frechet"] == 2 and found["levels"] == [2, 1, 0]
    size = work.preset.config.vqvae.codebook_size
    assert 1 <= found["perplexity"] <= found["codes_used"] <= size
    codes = samples.codes(work, "student-18", 1, PIECES)
    assert [part.shape[0] for part in codes] == [2, 2, 2]
    assert "levels" not in systems.listened(work, "corpus", 1, PIECES, lambda files: 0.0, None)


def test_pieces_of_the_top_level_are_decoded_alone(work):
    top = Pieces(2, 0.5, level=2)
    for name in ("codes", "student-18"):
        for path in samples.sampled(work, name, 1, top):
            assert abs(soundfile.info(path).duration - 0.5) < 128 / 44100
    assert not samples.codes(work, "student-18", 1, top)[0].numel()
    songs = samples.reference(work, top)
    assert len(songs) == 2 and all(0.9 < soundfile.info(path).duration <= 1.0 for path in songs)


def test_rows_of_the_script(work, tmp_path, capsys):
    path = tmp_path / "systems.jsonl"
    words = ["--work", str(work.folder), "--preset", "tiny", "--samples", "2", "--audio-seconds", "0.5", "--seeds", "1"]
    words += ["--windows", "1", "--device", "cpu", "--threads", "1", "--audio", str(tmp_path / "audio")]
    words += ["--clip-seconds", "0.2"]
    # A distance from two pieces of half a second cannot be told: said in the row, and the rest goes on.
    assert systems.main([*words, "--json", str(path)]) == 1
    rows = {row["row"]: row for row in harness.read(path)}
    assert 0 < rows["plain-18 level 2"]["bits"] < 6 and rows["plain-18 level 2"]["kl"] >= 0
    assert "kl" not in rows["teacher-72 level 0"] and "plain-18 level 0" not in rows
    assert "too few" in rows["student-18 samples seed 1"]["error"]
    assert set(rows) >= {f"{name} audio" for name in ("teacher-72", "plain-18", "student-18")}
    for name in ("plain-18", "plain-18-top"):
        assert soundfile.info(tmp_path / "audio" / f"{name}.mp3").samplerate == 44100
    assert all(name in SYSTEMS for name in ("plain-18", "student-18")) and "bits per code" in capsys.readouterr().out


def test_other_settings_make_other_pieces(work):
    first = [
        path.read_bytes() for path in samples.sampled(work, "student-18", 5, Pieces(2, 0.5, top_p=(1.0, 1.0, 1.0)))
    ]
    greedy = [
        path.read_bytes() for path in samples.sampled(work, "student-18", 5, Pieces(2, 0.5, top_p=(0.1, 0.1, 0.1)))
    ]
    assert first != greedy


def test_table2_judges_the_classifier_and_scores_each_system(work, tmp_path, monkeypatch):
    # A few songs, of each mood that there is.
    moods = [Labelled(song.path, mood) for mood in range(4) for song in read_quadrants(work.corpus)]
    monkeypatch.setattr(table2, "split", lambda *_, **__: (moods, moods))
    torch.manual_seed(0)
    valence.save(valence.ValenceNet(valence.PRESETS["tiny"]), tmp_path / "mood")
    words = ["--work", str(work.folder), "--preset", "tiny", "--samples", "2", "--audio-seconds", "2.5"]
    words += ["--device", "cpu", "--threads", "1", "--classifier", str(tmp_path / "mood")]
    path = tmp_path / "table2.jsonl"
    assert table2.main([*words, "--seeds", "1", "2", "--json", str(path)]) == 0
    rows = {row["row"]: row for row in harness.read(path)}
    assert rows.keys() == {"classifier", *table2.SHOWN}
    assert 0 <= rows["classifier"]["roc_auc"] <= 1 and rows["classifier"]["held_out_songs"] >= 1
    for name in table2.SHOWN:
        assert rows[name]["samples"] == 4 and sum(rows[name]["valence"].values()) == pytest.approx(1, abs=1e-3)
