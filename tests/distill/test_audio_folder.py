"""Scans of folders as people have them, and crops that are what the whole song has there."""

import os

import numpy as np
import pytest
import soundfile
import torch
from fastjukebox.distill.audio_crops import AudioCrops
from fastjukebox.distill.audio_folder import Scan, Skipped, Song, held_out_songs, list_files, read, scan
from fastjukebox.engine.audio import AudioError, read_audio
from hypothesis import given, settings
from hypothesis import strategies as st

RATE = 44100


def _noise(seconds, rate=RATE, channels=1, seed=0):
    return 0.1 * np.random.default_rng(seed).standard_normal((round(seconds * rate), channels))


def _write(path, seconds, rate=RATE, channels=1, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, _noise(seconds, rate, channels, len(str(path))), rate, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audio")
    _write(folder / "a.wav", 1.0)
    _write(folder / "one" / "a.wav", 0.6)
    _write(folder / "one" / "two" / "a.flac", 0.5, 48000, 2)
    _write(folder / "one" / "LOUD.WAV", 0.7, 8000)
    _write(folder / "žluťoučký 音楽.ogg", 0.8, 22050)
    _write(folder / "float.aiff", 0.05, 32000, 3, subtype="FLOAT")
    _write(folder / "cut.flac", 1.0)
    _write(folder / "cut.mp3", 1.0)
    for name in ("cut.mp3", "cut.flac"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) * 2 // 3])
    # Of the same length as before, with the damage where neither header nor end show it.
    (folder / "dirty.flac").write_bytes(whole[: len(whole) // 2] + bytes(3000) + whole[len(whole) // 2 + 3000 :])
    (folder / "nothing.wav").write_bytes(b"")
    soundfile.write(folder / "no samples.wav", np.zeros(0), RATE)
    soundfile.write(folder / "nan.wav", np.array([0.0, np.nan]), RATE, subtype="FLOAT")
    (folder / "text.wav").write_text("The lyrics of a song.\n" * 100)
    (folder / "headerless.raw").write_bytes(bytes(1000))
    (folder / "apple.m4a").write_bytes(bytes(1000))
    (folder / "one" / "cover.jpg").write_bytes(b"")
    (folder / "README").write_text("No audio.")
    (folder / "gone.wav").symlink_to(folder / "nowhere.wav")
    (folder / "one" / "up").symlink_to(folder)
    os.mkfifo(folder / "pipe.wav")
    (folder / "labels.csv").write_text(
        "file,mood\n./one/a.wav,calm\nžluťoučký 音楽.ogg,lively\nlost.wav,\n", "utf-8-sig"
    )
    return folder


def test_every_file_is_a_song_or_skipped_or_counted(folder):
    found = scan(folder, 0.2, 0)
    songs = {song.path: (song.sample_rate, song.channels, song.frames) for song in found.songs}
    assert songs == {
        "a.wav": (44100, 1, 44100),
        "float.aiff": (32000, 3, 1600),
        "one/LOUD.WAV": (8000, 1, 5600),
        "one/a.wav": (44100, 1, 26460),
        "one/two/a.flac": (48000, 2, 24000),
        "žluťoučký 音楽.ogg": (22050, 1, 17640),
    }
    assert [song.path for song in found.songs] == sorted(songs)
    reasons = {skipped.path: skipped.reason for skipped in found.skipped}
    assert set(reasons) == {
        *("apple.m4a", "cut.flac", "cut.mp3", "dirty.flac", "gone.wav", "headerless.raw", "nan.wav", "no samples.wav"),
        *("nothing.wav", "pipe.wav", "text.wav"),
    }
    assert reasons["no samples.wav"] == "holds no samples" and "NaN" in reasons["nan.wav"]
    assert reasons["gone.wav"] == reasons["pipe.wav"] == "no regular file"
    assert all(reasons.values()) and not any(str(folder) in reason for reason in reasons.values())
    assert found.ignored == 2 and found.unmatched == ("lost.wav",)
    assert all(
        part in found.report()
        for part in (*reasons, "6 songs", "5 to train on, 1 held out", "11 skipped", "2 other", "lost.wav")
    )
    assert len(songs) + len(reasons) + found.ignored + 1 == sum(len(files) for _, _, files in os.walk(folder)), (
        "a file is not accounted for"
    )


def test_headers_and_ends_show_what_was_cut_short(folder):
    quick, whole = scan(folder, 0.2, 0, decode=False), scan(folder, 0.2, 0)
    missed = {file.path for file in whole.skipped} - {file.path for file in quick.skipped}
    assert missed <= {"dirty.flac"}
    assert {song.path: song.seconds for song in quick.songs if song.path not in missed} == {
        song.path: song.seconds for song in whole.songs
    }


def test_labels_belong_to_their_songs(folder):
    labels = {song.path: song.labels for song in scan(folder, 1, 0).songs}
    assert labels["one/a.wav"] == {"mood": "calm"} and labels["žluťoučký 音楽.ogg"] == {"mood": "lively"}
    assert labels["a.wav"] == {}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("name,mood\na.wav,calm\n", "column `file`"),
        ("path,mood\na.wav,calm\na.wav,calm\n", "line 3: a.wav is there twice"),
        ("file,mood\na.wav,calm,sad\n", "line 2: 2 values"),
        ("file,mood\na.wav\n", "line 2: 2 values"),
        ("", "column `file`"),
        ('file,lyrics\na.wav,"la la\nb.wav,la\n', "labels.csv is no CSV in UTF-8 .*is a quote left open"),
        ('file,lyrics\na.wav,"' + "la la\n" * 30000, "labels.csv is no CSV in UTF-8 .*field larger"),
        ("file,lyrics\na.wav,caf\u00e9\n", "labels.csv is no CSV in UTF-8 .*can't decode"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(tmp_path, table, message):
    (tmp_path / "labels.csv").write_text(table, "latin-1")
    with pytest.raises(ValueError, match=message):
        scan(tmp_path, 1, 0)


def test_headings_are_as_people_write_them(tmp_path):
    _write(tmp_path / "a.wav", 0.1)
    (tmp_path / "labels.csv").write_text("File, Artist,LYRICS\na.wav,Some Body,La\n")
    assert scan(tmp_path, 1, 0).songs[0].labels == {"artist": "Some Body", "lyrics": "La"}


def test_label_names_may_be_composed_otherwise(tmp_path):
    _write(tmp_path / "caf\u00e9.wav", 0.1)
    (tmp_path / "labels.csv").write_text("file,mood\ncafe\u0301.wav,calm\n", "utf-8")
    found = scan(tmp_path, 1, 0)
    assert found.songs[0].labels == {"mood": "calm"} and not found.unmatched


def test_names_that_are_no_unicode_are_reported(tmp_path):
    soundfile.write(tmp_path / "ok.wav", np.zeros(10), RATE)
    os.rename(tmp_path / "ok.wav", os.fsencode(tmp_path) + b"/\xff.wav")
    found = scan(tmp_path, 1, 0)
    assert [skipped.reason for skipped in found.skipped] == ["its name is not valid Unicode"]
    found.report().encode()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(AudioError, match="nowhere"):
        list_files(tmp_path / "nowhere")


paths = st.sets(st.text(st.characters(exclude_categories=("Cs",)), min_size=1), min_size=0, max_size=20)


@given(paths, st.one_of(st.integers(0, 25), st.floats(0, 1, exclude_max=True)), st.integers(0, 3))
def test_split_holds_out_as_many_as_asked_but_never_none_nor_all(paths, held_out, seed):
    if isinstance(held_out, int) and 2 <= len(paths) <= held_out:
        with pytest.raises(ValueError, match="nothing to train on"):
            held_out_songs(paths, held_out, seed)
        return
    held = held_out_songs(paths, held_out, seed)
    assert held <= paths and held == held_out_songs(sorted(paths, reverse=True), held_out, seed)
    if len(paths) < 2:
        assert not held
        return
    asked = held_out if isinstance(held_out, int) else round(held_out * len(paths))
    assert len(held) == min(max(asked, 1), len(paths) - 1)
    assert len(held_out_songs(paths, 1, seed) & held) == 1


def test_split_depends_on_the_seed_and_not_on_labels(tmp_path):
    for index in range(12):
        _write(tmp_path / f"{index}.wav", 0.01)

    def held(seed):
        return [song.path for song in scan(tmp_path, 0.25, seed).songs if song.split == "held_out"]

    before = held(0)
    (tmp_path / "labels.csv").write_text("file,mood\n3.wav,calm\n")
    assert held(0) == before and len(before) == 3
    assert len({tuple(held(seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize("held_out", [-1, -0.5, 1.0, 1.5])
def test_split_refuses_what_is_no_number_and_no_share(held_out):
    with pytest.raises(ValueError, match="held_out"):
        held_out_songs({"a", "b"}, held_out, 0)


def _song(found, path):
    return next(song for song in found.songs if song.path == path)


@pytest.fixture(scope="module")
def mp3(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mp3")
    _write(folder / "song.mp3", 2.0, 48000, 2)
    return scan(folder, 1, 0)


@pytest.mark.parametrize("path", ["a.wav", "one/two/a.flac", "one/LOUD.WAV", "žluťoučký 音楽.ogg", "float.aiff"])
@pytest.mark.parametrize("rate", [RATE, 16000])
def test_a_part_equals_that_part_of_the_whole_song(folder, path, rate):
    song = _song(scan(folder, 1, 0, decode=False), path)
    whole = read_audio(folder / path, rate)[0]
    length = song.samples(rate)
    assert 0 <= len(whole) - length <= 1
    torch.testing.assert_close(read(folder, song, rate), whole[:length], atol=0, rtol=0)
    rng = np.random.default_rng(0)
    for _ in range(10):
        start, stop = sorted(rng.integers(0, length + 1, 2))
        part = read(folder, song, rate, int(start), int(stop))
        torch.testing.assert_close(part, whole[start:stop], atol=2e-5, rtol=0)


def test_a_part_of_a_song_of_a_low_rate_has_what_the_filter_sees(tmp_path):
    noise = 0.3 * np.random.default_rng(0).standard_normal(4000)
    soundfile.write(tmp_path / "low.wav", noise, 1000)
    whole = read_audio(tmp_path / "low.wav", RATE)[0]
    part = read(tmp_path, Song("low.wav", 4.0, 1000, 1, "train"), RATE, 60000, 90000)
    torch.testing.assert_close(part, whole[60000:90000], atol=2e-5, rtol=0)


def test_an_mp3_is_read_in_parts(mp3):
    song = mp3.songs[0]
    whole = read(mp3.folder, song, RATE)
    part = read(mp3.folder, song, RATE, 30000, 40000)
    assert float((part - whole[30000:40000]).abs().max()) < 1e-2 < float(part.abs().max())


def test_damage_found_while_training_is_named(folder):
    song = Song("dirty.flac", 1.0, RATE, 1, "train")
    with pytest.raises(AudioError, match=r"dirty\.flac at 0\.0 s: .*scan the folder again"):
        read(folder, song, RATE)


def test_crops_are_parts_of_training_songs_followed_by_silence(folder):
    found = scan(folder, 2, 0)
    crops = AudioCrops(found, 30000, RATE, 3)
    batch = crops.batch(0, 24)
    assert batch.shape == (24, 30000) and batch.dtype == torch.float32
    assert torch.equal(batch, AudioCrops(found, 30000, RATE, 3).batch(0, 24))
    assert not torch.equal(batch, crops.batch(1, 24))
    assert not torch.equal(batch, AudioCrops(found, 30000, RATE, 4).batch(0, 24))
    songs = {song.path: read(folder, song, RATE) for song in found.songs if song.split == "train"}
    for row in batch:
        assert any(_is_part(row, audio) for audio in songs.values())


def _is_part(row, audio):
    """Whether `row` is a part of `audio`, or all of it and then zeros."""
    if len(audio) <= len(row):
        return not row[len(audio) :].any() and torch.allclose(row[: len(audio)], audio, atol=2e-5)
    windows = audio.unfold(0, 64, 1)
    starts = torch.nonzero((windows[: len(audio) - len(row) + 1] - row[:64]).abs().amax(1) < 4e-5)
    return any(torch.allclose(audio[s : s + len(row)], row, atol=2e-5) for s in starts[:, 0])


def test_songs_are_chosen_in_proportion_to_their_duration(tmp_path):
    for value, seconds in ((0.1, 0.1), (0.2, 0.2), (0.4, 0.7)):
        soundfile.write(tmp_path / f"{seconds}.wav", np.full(int(seconds * 8000), value), 8000)
    songs = tuple(Song(f"{s}.wav", s, 8000, 1, "train") for s in (0.1, 0.2, 0.7))
    batch = AudioCrops(Scan(tmp_path, songs, (), 0, ()), 400, 8000, 0).batch(0, 600)
    shares = [float(((batch - value).abs().amax(1) < 1e-3).float().mean()) for value in (0.1, 0.2, 0.4)]
    assert shares == pytest.approx([0.1, 0.2, 0.7], abs=0.05)


def test_measured_crops_are_spread_over_each_held_out_song(tmp_path):
    ramp = np.arange(10_000) / 20_000
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", ramp, 8000, subtype="FLOAT")
    crops = AudioCrops(scan(tmp_path, 1, 0), 1000, 8000, 0)
    assert [round(float(v) * 20_000) for v in crops.measured()[:, 0]] == [4500]
    assert [round(float(v) * 20_000) for v in crops.measured(3)[:, 0]] == [1500, 4500, 7500]
    assert crops.measured(3).shape == (3, 1000)
    # Of two places the second one too.
    long = AudioCrops(scan(tmp_path, 1, 0), 9999, 8000, 0)
    assert round(float(long.measured()[0, 0]) * 20_000) == 1
    assert {round(float(v) * 20_000) for v in long.batch(0, 20)[:, 0]} == {0, 1}


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 100))
def test_ranks_hear_the_batch_between_them(folder, world, share, step):
    crops = AudioCrops(Scan(folder, (Song("a.wav", 1.0, RATE, 1, "train"),), (), 0, ()), 500, 8000, 1)
    parts = [crops.batch(step, world * share, rank, world) for rank in range(world)]
    assert torch.equal(torch.cat(parts), crops.batch(step, world * share))


def test_unequal_parts_of_a_batch_are_refused(folder):
    with pytest.raises(ValueError, match=r"5 .*rank 0 of 2 processes: start 1, 5 of them"):
        AudioCrops(scan(folder, 1, 0, decode=False), 500, 8000, 1).batch(0, 5, 0, 2)


def test_too_little_audio_is_said_clearly(tmp_path):
    with pytest.raises(ValueError, match=r"no song to train on(.|\n)*skipped bad\.wav: broken"):
        AudioCrops(Scan(tmp_path, (), (Skipped("bad.wav", "broken"),), 0, ()), 100, RATE, 0)
    _write(tmp_path / "only.wav", 0.1)
    crops = AudioCrops(scan(tmp_path, 0.1, 0), 100, RATE, 0)
    assert crops.batch(0, 2).shape == (2, 100)
    with pytest.raises(ValueError, match=r"held out .*cut a single one into parts"):
        crops.measured()
