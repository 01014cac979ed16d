"""A toy that the classifier must learn, its figures on known scores, and labels that cannot be used."""

import csv
import dataclasses

import numpy as np
import pytest
import torch
from fastjukebox.distill import valence
from fastjukebox.distill.corpus import write_corpus
from fastjukebox.distill.labels import QUADRANTS, Labelled, LabelledCrops, read_quadrants, split
from fastjukebox.distill.mel import log_mel
from fastjukebox.distill.trainer import Budget
from fastjukebox.distill.valence import (
    PRESETS,
    ValenceNet,
    ValenceTraining,
    auc,
    load,
    report,
    save,
    scores,
    song_probabilities,
    train_valence,
)
from fastjukebox.engine.audio import AudioError, write_audio
from fastjukebox.engine.checkpoint import CheckpointError

CONFIG = PRESETS["tiny"]
RATE = CONFIG.mel.sample_rate


def _toy(quadrant, seed, seconds=3.0):
    """Pulsed or steady, bright or dull: four kinds of tone, [1, samples]."""
    rng = np.random.default_rng([seed, quadrant])
    time = np.arange(int(seconds * RATE)) / RATE
    is_active, is_bright = quadrant in (0, 2), quadrant in (0, 1)
    frequency = (900 if is_bright else 300) * rng.uniform(0.9, 1.1)
    envelope = (time * rng.uniform(3.5, 4.5) % 1 < 0.3) if is_active else 1.0
    audio = 0.2 * envelope * np.sin(2 * np.pi * frequency * time) + 1e-3 * rng.standard_normal(len(time))
    return torch.from_numpy(audio[None]).float()


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    with (folder / "labels.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(("path", "quadrant"))
        for seed in range(5):
            for quadrant, name in enumerate(QUADRANTS):
                write_audio(folder / f"{name}-{seed}.wav", _toy(quadrant, seed), RATE)
                writer.writerow((f"{name}-{seed}.wav", name))
    return folder


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory):
    path = tmp_path_factory.mktemp("work") / "valence"
    budget = Budget(steps=100, learning_rate=1e-2, warm_up=10, log_every=1000)
    settings = ValenceTraining(batch=8, semitones=1, label_smoothing=0.0)
    return train_valence(path, read_quadrants(toy), CONFIG, budget, settings, 0)


def test_four_kinds_of_tone_are_told_apart(trained, tmp_path):
    net, progress, held_out = trained
    assert progress.step == 100 and sorted(song.quadrant for song in held_out) == [0, 1, 2, 3]
    figures = report(net, held_out)
    assert figures["accuracy"] > 0.9 and figures["roc_auc"] > 0.95 and figures["pr_auc"] > 0.9
    for quadrant, name in enumerate(QUADRANTS):
        (tmp_path / name).mkdir()
        for seed in range(100, 103):
            write_audio(tmp_path / name / f"{seed}.wav", _toy(quadrant, seed), RATE)
        found = scores(net, tmp_path / name)
        assert list(found) == list(QUADRANTS) and sum(found.values()) == pytest.approx(1)
        assert max(found, key=found.__getitem__) == name


def test_saved_network_gives_the_same_probabilities(trained, toy, tmp_path):
    net = trained[0]
    save(net, tmp_path / "net")
    again = load(tmp_path / "net")
    assert again.config == CONFIG and not again.training
    files = [toy / "AP-0.wav", toy / "DU-1.wav"]
    assert torch.equal(song_probabilities(again, files), song_probabilities(net.train(), files))
    # Heard as it is when it is trained, and trained on as before.
    assert net.training and not net.eval().training
    assert sorted(path.name for path in (tmp_path / "net").iterdir()) == ["valence.json", "valence.safetensors"]


def test_a_song_is_heard_from_beginning_to_end_and_a_short_one_whole(trained, tmp_path):
    net, samples = trained[0], CONFIG.crop_samples
    halves = [_toy(quadrant, 7, seconds=4.0)[:, :samples] for quadrant in (0, 3)]
    for name, audio in zip("abcd", (*halves, torch.cat(halves, 1), halves[0][:, : samples // 2]), strict=True):
        write_audio(tmp_path / f"{name}.wav", audio, RATE)
    first, last, both, short = (song_probabilities(net, [tmp_path / f"{name}.wav"], crops=2) for name in "abcd")
    torch.testing.assert_close(both, (first + last) / 2)
    assert not torch.allclose(both, first, atol=0.1) and float(short.sum()) == pytest.approx(1)


def test_damaged_networks_are_named(trained, tmp_path):
    with pytest.raises(CheckpointError, match=r"valence\.json"):
        load(tmp_path)
    save(trained[0], tmp_path)
    whole = (tmp_path / "valence.safetensors").read_bytes()
    (tmp_path / "valence.safetensors").write_bytes(whole[:1000])
    with pytest.raises(CheckpointError, match=r"valence\.safetensors"):
        load(tmp_path)
    (tmp_path / "valence.safetensors").write_bytes(whole)
    save_json = (tmp_path / "valence.json").read_text()
    (tmp_path / "valence.json").write_text(save_json.replace('"stem": 8', '"stem": 9'))
    with pytest.raises(CheckpointError, match="shape"):
        load(tmp_path)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_any_length_from_two_seconds_gives_four_logits(name):
    config = PRESETS[name]
    net = ValenceNet(config).eval()
    for seconds, items in ((2.0, 2), (3.1, 1), (9.0, 1)):
        audio = torch.randn(items, int(seconds * config.mel.sample_rate)) * 0.1
        assert net(log_mel(audio, config.mel)).shape == (items, 4)


def test_interrupted_training_gives_the_same_weights(toy, tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, dropout=0.2)
    budget = Budget(steps=8, learning_rate=1e-3, warm_up=2, log_every=4, save_seconds=0.0)
    arguments = (read_quadrants(toy), config, budget, ValenceTraining(batch=4), 3)
    whole, _, _ = train_valence(tmp_path / "whole", *arguments)
    batch = LabelledCrops.batch

    def interrupted(crops, step, size):
        if step == 5:
            raise KeyboardInterrupt
        return batch(crops, step, size)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(LabelledCrops, "batch", interrupted)
        train_valence(tmp_path / "cut", *arguments)
    cut, progress, _ = train_valence(tmp_path / "cut", *arguments)
    assert progress.step == 8
    for (name, a), b in zip(whole.state_dict().items(), cut.state_dict().values()):
        assert torch.equal(a, b), name


def test_crops_are_transposed_either_way_and_labels_smoothed(toy, tmp_path, monkeypatch):
    songs, moved, smoothed, cross_entropy = [], [], [], valence.F.cross_entropy

    def heard(audio, config, semitones=None):
        moved.extend(semitones or [])
        return log_mel(audio, config, semitones)

    def loss(*given, label_smoothing):
        smoothed.append(label_smoothing)
        return cross_entropy(*given, label_smoothing=label_smoothing)

    def crops_of(training, *given):
        songs.extend(training)
        return LabelledCrops(training, *given)

    monkeypatch.setattr(valence, "LabelledCrops", crops_of)
    monkeypatch.setattr(valence, "log_mel", heard)
    monkeypatch.setattr(valence.F, "cross_entropy", loss)
    settings = ValenceTraining(batch=12, semitones=2, label_smoothing=0.125)
    budget = Budget(steps=3, learning_rate=1e-3)
    _, _, held_out = train_valence(tmp_path, read_quadrants(toy), CONFIG, budget, settings, 0)
    # What is held out is not among it.
    assert sorted(songs + held_out) == sorted(read_quadrants(toy))
    assert set(moved) == {-2, -1, 0, 1, 2} and smoothed == [0.125] * 3
    assert len({tuple(moved[start : start + 12]) for start in (0, 12, 24)}) == 3


def test_areas_under_the_curves_of_known_scores():
    quadrants = [0, 1, 2, 3]
    assert auc(torch.eye(4), quadrants) == {"pr_auc": 1.0, "roc_auc": 1.0, "accuracy": 1.0}
    # All songs score alike: chance, and the precision is the share of the class.
    flat = auc(torch.full((4, 4), 0.25), quadrants)
    assert flat["roc_auc"] == 0.5 and flat["pr_auc"] == 0.25
    # AP against the rest: ranks 0.9 (AP), 0.8 (DP), 0.7 (AP), 0.1: one of four pairs is in the wrong order.
    scored = torch.eye(4)[[0, 1, 0, 2, 3]]
    scored[:, 0] = torch.tensor([0.9, 0.8, 0.7, 0.1, 0.1])
    figures = auc(scored, [0, 1, 0, 2, 3])
    assert figures["roc_auc"] == pytest.approx((5 / 6 + 3) / 4)
    assert figures["pr_auc"] == pytest.approx(((1 + 2 / 3) / 2 + 3) / 4)


def test_a_class_without_held_out_songs_is_named():
    with pytest.raises(ValueError, match="no held-out song is DP or DU"):
        auc(torch.eye(4)[[0, 2, 2]], [0, 2, 2])


def test_corpus_labels_are_read(tmp_path):
    write_corpus(tmp_path, 3, 0.5)
    songs = read_quadrants(tmp_path)
    assert [song.path.name for song in songs] == ["song-0000.flac", "song-0001.flac", "song-0002.flac"]
    with (tmp_path / "labels.csv").open(newline="") as table:
        assert [QUADRANTS[song.quadrant] for song in songs] == [row["quadrant"] for row in csv.DictReader(table)]
    assert read_quadrants(tmp_path / "labels.csv") == songs


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("path,quadrant\na.wav,XX\n", r"line 2: unknown quadrant 'XX'; it must be AP, DP, AU, DU"),
        ("path,quadrant\na.wav,AP\nlost.wav,AP\n", r"line 3: no such file: .*lost\.wav"),
        ("path,quadrant\na.wav,AP\na.wav,DP\n", r"line 3: .*a\.wav has a label already"),
        ("path,quadrant\na.wav\n", r"line 2: unknown quadrant None"),
        ("name,quadrant\na.wav,AP\n", r"needs the columns path \(or file\) and quadrant, has name, quadrant"),
        ("path,mood\na.wav,AP\n", r"needs the columns .*has path, mood"),
        ("", r"has none"),
    ],
)
def test_tables_that_cannot_be_used_are_explained(tmp_path, table, message):
    (tmp_path / "a.wav").touch()
    (tmp_path / "songs.csv").write_text(table)
    with pytest.raises(AudioError, match=message):
        read_quadrants(tmp_path / "songs.csv")


def test_a_spreadsheets_byte_order_mark_is_no_part_of_a_column(tmp_path):
    (tmp_path / "a.wav").touch()
    (tmp_path / "songs.csv").write_text("path,quadrant\na.wav,DU\n", "utf-8-sig")
    assert read_quadrants(tmp_path / "songs.csv") == [Labelled(tmp_path / "a.wav", 3)]


def test_missing_tables_and_unreadable_songs_are_named(tmp_path):
    with pytest.raises(AudioError, match=r"labels\.csv: no such file"):
        read_quadrants(tmp_path)
    (tmp_path / "a.wav").write_bytes(b"not audio")
    with pytest.raises(AudioError, match=r"cannot read audio from .*a\.wav"):
        LabelledCrops([Labelled(tmp_path / "a.wav", 0)], CONFIG.mel, CONFIG.crop_samples, 0)
    write_audio(tmp_path / "b.wav", torch.zeros(1, RATE // 2), RATE)
    with pytest.raises(AudioError, match=r"b\.wav: shorter than a crop of 2.0 s"):
        LabelledCrops([Labelled(tmp_path / "b.wav", 0)], CONFIG.mel, CONFIG.crop_samples, 0)
    with pytest.raises(AudioError, match=r"b\.wav: 0\.5 s are too short"):
        song_probabilities(ValenceNet(CONFIG), [tmp_path / "b.wav"])


def test_songs_are_held_out_from_each_quadrant(tmp_path):
    songs = [Labelled(tmp_path / f"{index}.wav", index % 4) for index in range(40)]
    training, held_out = split(songs, 0.2, 0)
    assert sorted(training + held_out) == sorted(songs) and len(held_out) == 8
    assert sorted(song.quadrant for song in held_out) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert split(songs, 0.2, 0) == (training, held_out) != split(songs, 0.2, 1)
    # Others may be held out as well, but not all.
    more = [song.path for song in training[:2]]
    assert sorted(split(songs, 0.2, 0, more)[1]) == sorted([*held_out, *training[:2]])
    with pytest.raises(ValueError, match="quadrant AP has no song left to train on"):
        split(songs, 0.2, 0, [song.path for song in songs])
    with pytest.raises(ValueError, match="quadrant DU has 0 songs"):
        split([song for song in songs if song.quadrant < 3], 0.2, 0)


def test_crops_are_balanced_and_depend_on_the_step_alone(toy):
    songs = [song for song in read_quadrants(toy) if song.quadrant or song.path.name == "AP-0.wav"]
    one, other = (LabelledCrops(songs, CONFIG.mel, CONFIG.crop_samples, 5) for _ in range(2))
    one.batch(0, 8)
    audio, _ = one.batch(3, 8)
    assert audio.shape == (8, CONFIG.crop_samples)
    assert all(sorted(one.batch(step, 8)[1].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3] for step in range(4))
    assert torch.equal(audio, other.batch(3, 8)[0]) and not torch.equal(audio, one.batch(4, 8)[0])
    assert not torch.equal(audio, LabelledCrops(songs, CONFIG.mel, CONFIG.crop_samples, 6).batch(3, 8)[0])


def test_impossible_settings_are_refused():
    for change in ({"semitones": 7}, {"held_out": 0.0}, {"held_out": 1.0}):
        with pytest.raises(ValueError, match="semitones must be"):
            ValenceTraining(**change)
