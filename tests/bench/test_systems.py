"""The benchmarks that listen, on a tiny stack: pieces, figures, and the same pieces when asked again."""

from __future__ import annotations

import argparse
import json
import shutil

import pytest
import soundfile
import torch
from fastjukebox.bench import harness, samples, systems, table2
from fastjukebox.bench.samples import Pieces
from fastjukebox.distill import valence
from fastjukebox.distill.frechet import Frechet
from fastjukebox.distill.labels import QUADRANTS, Labelled
from fastjukebox.distill.systems import SYSTEMS
from fastjukebox.distill.work import Work

PIECES = Pieces(2, 0.5)
NO_DISTANCE = Frechet(0.0, (1, 1))


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


@pytest.fixture(scope="module")
def songs(work) -> samples.Songs:
    return samples.songs_of(work, work.corpus, None)


@pytest.mark.parametrize("name", ["corpus", "codes", "plain-18", "teacher-72"])
def test_pieces_are_files_of_the_length_asked_for_and_stay(work, songs, name):
    files = samples.sampled(work, name, 1, PIECES, songs)
    before = [path.read_bytes() for path in files]
    assert len(set(before)) == 2
    for path in files:
        assert abs(soundfile.info(path).duration - 0.5) < 1e-3
    times = [path.stat().st_mtime_ns for path in files]
    assert samples.sampled(work, name, 1, PIECES, songs) == files
    assert [path.stat().st_mtime_ns for path in files] == times
    assert samples.sampled(work, name, 2, PIECES, songs)[0].read_bytes() not in before


def test_codes_are_the_corpuss_pieces_through_the_vqvae(work, songs):
    for plain, heard in zip(*(samples.sampled(work, name, 3, PIECES, songs) for name in samples.CORPUS), strict=True):
        assert plain.read_bytes() != heard.read_bytes()
        assert len(soundfile.read(plain)[0]) - len(soundfile.read(heard)[0]) in range(8)


def test_a_system_of_the_top_level_takes_the_rest_from_its_student(work):
    plain, student = samples.model(work, "plain-18"), samples.model(work, "student-18")
    for level, same in ((0, True), (1, True), (2, False)):
        pairs = zip(plain.prior(level).parameters(), student.prior(level).parameters())
        assert all(torch.equal(a, b) for a, b in pairs) == same


def test_figures_of_samples(work, songs):
    found = systems.listened(
        work, "student-18", 1, PIECES, songs, lambda files: Frechet(float(len(files)), (70, 90)), None
    )
    assert found["frechet"] == 2 and found["levels"] == [2, 1, 0]
    assert (found["patches"], found["reference_patches"]) == (70, 90)
    size = work.preset.config.vqvae.codebook_size
    assert 1 <= found["perplexity"] <= found["codes_used"] <= size
    codes = samples.codes(work, "student-18", 1, PIECES)
    assert [part.shape[0] for part in codes] == [2, 2, 2]
    held_out = systems.listened(work, "corpus", 1, PIECES, songs, lambda files: NO_DISTANCE, None)
    assert "levels" not in held_out and held_out["songs"] == len(songs.held_out)


def test_pieces_of_the_top_level_are_decoded_alone(work, songs):
    top = Pieces(2, 0.5, level=2)
    for name in ("codes", "student-18"):
        for path in samples.sampled(work, name, 1, top, songs):
            assert abs(soundfile.info(path).duration - 0.5) < 128 / 44100
    assert not samples.codes(work, "student-18", 1, top)[0].numel()
    decoded = samples.reference(work, top, songs)
    assert len(decoded) == 2 and all(0.9 < soundfile.info(path).duration <= 1.0 for path in decoded)


def test_rows_of_the_script(work, tmp_path, capsys):
    path = tmp_path / "systems.jsonl"
    words = ["--work", str(work.folder), "--samples", "2", "--audio-seconds", "0.5", "--seeds", "1"]
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


def test_a_record_says_how_many_patches_each_side_had(work, tmp_path, monkeypatch):
    monkeypatch.setattr(systems.frechet, "statistics", lambda found: (torch.zeros(1), torch.eye(1)))
    path = tmp_path / "systems.jsonl"
    words = ["--work", str(work.folder), "--samples", "2", "--audio-seconds", "1.1", "--seeds", "1", "2", "--quick"]
    words += ["--systems", "plain-18", "--device", "cpu", "--threads", "1", "--json", str(path)]
    assert systems.main(words) == 0
    rows = {row["row"]: row for row in harness.read(path)}
    # Songs of one second hold no patch. Of several seeds it is the first.
    assert rows.keys() == {"plain-18 level 2", *(f"{name} samples seed 1" for name in (*samples.CORPUS, "plain-18"))}
    found = rows["plain-18 samples seed 1"]
    assert (found["patches"], found["reference_patches"]) == (2, 0)


def test_other_settings_make_other_pieces(work, songs):
    first = [
        path.read_bytes()
        for path in samples.sampled(work, "student-18", 5, Pieces(2, 0.5, top_p=(1.0, 1.0, 1.0)), songs)
    ]
    greedy = [
        path.read_bytes()
        for path in samples.sampled(work, "student-18", 5, Pieces(2, 0.5, top_p=(0.1, 0.1, 0.1)), songs)
    ]
    assert first != greedy


def test_networks_trained_anew_make_new_pieces(work, songs, monkeypatch):
    (file,) = samples.sampled(work, "student-18", 6, Pieces(1, 0.5), songs)
    made = file.stat().st_mtime_ns
    found = Work.figures

    def figures(self, name, level):
        return found(self, name, level) | ({"steps": -1} if (name, level) == ("student-18", 1) else {})

    monkeypatch.setattr(Work, "figures", figures)
    assert samples.sampled(work, "student-18", 6, Pieces(1, 0.5, level=2), songs) and file.stat().st_mtime_ns == made
    assert samples.sampled(work, "student-18", 6, Pieces(1, 0.5), songs) == [file]
    assert file.stat().st_mtime_ns != made


def mood_of(work, folder, **about):
    """A classifier that says no more of how it was trained than `about`."""
    torch.manual_seed(0)
    valence.save(valence.ValenceNet(valence.PRESETS["tiny"]), folder)
    path = folder / "valence.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | about))
    return folder


def test_table2_judges_the_classifier_and_scores_each_system(work, tmp_path, monkeypatch):
    # Few songs have a mood each.
    moods = [Labelled(work.corpus / song.path, mood) for mood in range(4) for song in work.codes().songs]
    monkeypatch.setattr(samples, "split", lambda *_: (moods, moods))
    words = ["--work", str(work.folder), "--samples", "2", "--audio-seconds", "2.5"]
    words += ["--device", "cpu", "--threads", "1", "--classifier", str(mood_of(work, tmp_path / "mood"))]
    path = tmp_path / "table2.jsonl"
    assert table2.main([*words, "--seeds", "1", "2", "--json", str(path)]) == 0
    rows = {row["row"]: row for row in harness.read(path)}
    assert rows.keys() == {"classifier", *table2.SHOWN}
    assert 0 <= rows["classifier"]["roc_auc"] <= 1 and rows["classifier"]["held_out_songs"] >= 1
    for name in table2.SHOWN:
        row = rows[name]
        assert row["samples"] == 4 and sum(row["valence"].values()) == pytest.approx(1, abs=1e-3)
        assert len(row["valence_by_seed"]) == 2
        assert row["valence"]["AP"] == pytest.approx(sum(mood["AP"] for mood in row["valence_by_seed"]) / 2)
    assert (rows["corpus"]["songs"], rows["corpus"]["songs_heard"]) == (1, 0) and "songs" not in rows["student-18"]


def test_pieces_come_from_songs_that_the_classifier_does_not_know_if_there_are_enough(tmp_path):
    songs = samples.Songs(tmp_path, tuple("abcdef"), frozenset("ab"))
    assert songs.new().held_out == tuple("cdef") and songs.new().figures == {"songs": 4, "songs_heard": 0}
    few = samples.Songs(tmp_path, tuple("abcdef"), frozenset("abc"))
    assert few.new() == few and few.figures == {"songs": 6, "songs_heard": 3}
    assert samples.Songs(tmp_path, ("a",)).new().figures == {"songs": 1}


def test_the_songs_that_a_classifier_does_not_know_are_those_it_names_or_its_seeds(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    names = [f"{number}.flac" for number in range(40)]
    for name in names:
        (corpus / name).touch()
    rows = "".join(f"{name},{QUADRANTS[number % 4]}\n" for number, name in enumerate(names))
    (corpus / "labels.csv").write_text(f"file,quadrant\n{rows}")

    def unheard(**about):
        folder = tmp_path / "mood"
        folder.mkdir(exist_ok=True)
        (folder / "valence.json").write_text(json.dumps(about))
        return {song.path.name for song in samples.unheard_by(folder, corpus)}

    assert unheard(held_out=["3.flac", "5.flac"], seed=1) == {"3.flac", "5.flac"}
    assert len(unheard()) == 8 and unheard() == unheard(seed=0) != unheard(seed=1)
    assert unheard(held_out=None, seed=None) == unheard() and unheard(held_out=[]) == set()
    assert samples.unheard_by(None, corpus) is None and samples.unheard_by(tmp_path / "mood", tmp_path) is None


def test_a_work_of_other_audio_has_its_songs_elsewhere(work, songs, tmp_path):
    elsewhere = samples.songs_of(work, tmp_path / "none", None)
    for name in ("corpus", "codes"):
        with pytest.raises(harness.Unavailable, match="--songs"):
            samples.sampled(work, name, 9, PIECES, elsewhere)
    with pytest.raises(harness.Unavailable, match="--songs"):
        samples.reference(work, PIECES, elsewhere)
    moved = tmp_path / "moved"
    shutil.copytree(work.corpus, moved)
    there = samples.sampled(work, "corpus", 9, PIECES, samples.songs_of(work, moved, None))
    here = [path.read_bytes() for path in there]
    assert here == [path.read_bytes() for path in samples.sampled(work, "corpus", 9, PIECES, songs)]


def test_a_work_says_its_preset_and_seed(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    systems.add_work_options(parser)
    harness.add_options(parser)
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "preset.json").write_text('{"preset": "tiny", "seed": 7}')
    work = systems.opened(parser, parser.parse_args(["--work", str(tmp_path / "w"), "--device", "cpu"]))
    assert (work.preset_name, work.seed) == ("tiny", 7)
    with pytest.raises(SystemExit):
        systems.opened(parser, parser.parse_args(["--work", str(tmp_path)]))
    assert "is no work of" in capsys.readouterr().err


def test_a_work_whose_teacher_is_gone_is_one_line(tmp_path, capsys):
    gone = {"folder": str(tmp_path / "gone"), "fingerprint": "0"}
    (tmp_path / "preset.json").write_text(json.dumps({"preset": "tiny", "seed": 0, "teacher": gone}))
    with pytest.raises(SystemExit):
        systems.main(["--work", str(tmp_path)])
    assert "say where it is now, with --teacher" in capsys.readouterr().err
