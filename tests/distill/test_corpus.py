"""The demo corpus: the same seed gives the same song, labels mean what they say, files survive an interruption."""

import csv
import itertools

import numpy as np
import pytest
import soundfile as sf
from fastjukebox.distill import corpus, synth

SECONDS = 8.0


def level_dbfs(audio: np.ndarray) -> float:
    return 10 * np.log10(np.mean(audio.astype(np.float64) ** 2))


def pitch_class_energy(audio: np.ndarray) -> np.ndarray:
    """Energy of the twelve pitch classes, C first, from 60 Hz to 2 kHz: [12]."""
    power = np.abs(np.fft.rfft(audio)) ** 2
    frequency = np.fft.rfftfreq(len(audio), 1 / corpus.SAMPLE_RATE)
    heard = (frequency > 60) & (frequency < 2000)
    classes = np.round(69 + 12 * np.log2(frequency[heard] / 440)).astype(int) % 12
    return np.bincount(classes, power[heard], minlength=12)


def test_same_seed_gives_same_bits():
    assert corpus.compose(7) == corpus.compose(7)
    first, second = (corpus.render(corpus.compose(7), SECONDS) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_different_seeds_give_different_songs():
    songs = [corpus.compose(seed) for seed in range(4)]
    assert len({corpus.render(song, SECONDS).tobytes() for song in songs}) == 4


@pytest.mark.parametrize("seconds", [0.0, 0.01, 1.2345, 6.5])
@pytest.mark.parametrize("sample_rate", [44100, 16000])
def test_length_is_exact_and_audio_is_bounded(seconds, sample_rate):
    for seed in range(2):
        audio = corpus.render(corpus.compose(seed), seconds, sample_rate)
        assert audio.dtype == np.float32
        assert audio.shape == (round(seconds * sample_rate),)
        assert np.isfinite(audio).all()
        assert np.abs(audio).max(initial=0) <= corpus.PEAK * 1.0001


def test_songs_are_audible_and_centred():
    for seed in range(4):
        audio = corpus.render(corpus.compose(seed), SECONDS)
        assert -24 < level_dbfs(audio) < -11
        assert abs(audio.mean()) < 2e-3


@pytest.mark.parametrize("name", synth.TONES)
def test_tones_start_and_end_in_silence(name):
    wave = synth.tone(name, 60, 0.25, corpus.SAMPLE_RATE)
    assert np.abs(wave[[0, -1]]).max() < 1e-4 * np.abs(wave).max()


@pytest.mark.parametrize("name", synth.DRUM_GAINS)
def test_drums_start_and_end_in_silence(name):
    wave = synth.drum(name, corpus.SAMPLE_RATE)
    assert np.abs(wave[[0, -1]]).max() < 1e-4 * np.abs(wave).max()


def test_every_quadrant_is_common():
    quadrants = [corpus.compose(seed).quadrant for seed in range(200)]
    assert set(quadrants) == {"AP", "DP", "AU", "DU"}
    assert min(quadrants.count(name) for name in set(quadrants)) >= 30


def test_labels_are_in_range_and_follow_the_mode():
    for song in map(corpus.compose, range(200)):
        assert 0 <= song.tonic < 12
        assert -1 <= song.valence <= 1
        assert -1 <= song.arousal <= 1
        assert (song.valence > 0) == (song.mode in ("ionian", "mixolydian"))


def test_activated_songs_are_faster_and_louder():
    songs = [corpus.compose(seed) for seed in range(200)]
    activated = [song for song in songs if song.arousal > 0]
    calm = [song for song in songs if song.arousal < 0]
    assert np.mean([song.tempo for song in activated]) > np.mean([song.tempo for song in calm]) + 16

    def loudness(group):
        return np.mean([level_dbfs(corpus.render(song, SECONDS)) for song in group[:6]])

    assert loudness(activated) > loudness(calm) + 1


@pytest.mark.parametrize("seed", range(6))
def test_energy_lies_in_the_scale(seed):
    song = corpus.compose(seed)
    energy = pitch_class_energy(corpus.render(song, 12.0))
    scale = [(song.tonic + step) % 12 for step in corpus.MODES[song.mode]]
    assert energy[scale].sum() > 0.75 * energy.sum()
    assert set(np.argsort(energy)[-3:]) <= set(scale)


@pytest.mark.parametrize("seed", range(6))
def test_score_stays_in_the_key_and_each_onset_has_one_lead_note(seed):
    song = corpus.compose(seed)
    notes = corpus.arrange(song, 20 * 16)
    scale = {(song.tonic + step) % 12 for step in corpus.MODES[song.mode]}
    assert all(note.pitch % 12 in scale for note in notes if note.instrument in synth.TONES)
    lead = sorted((note for note in notes if note.instrument == "lead"), key=lambda note: note.start)
    assert all(note.start + note.steps <= after.start for note, after in itertools.pairwise(lead))
    assert {"lead", "bass"} <= {note.instrument for note in notes}


def test_write_corpus_resumes(tmp_path):
    corpus.write_corpus(tmp_path, songs=3, seconds=1.0, seed=5)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    assert set(before) == {"song-0000.flac", "song-0001.flac", "song-0002.flac", "labels.csv"}
    (tmp_path / "song-0001.flac").unlink()
    corpus.write_corpus(tmp_path, songs=3, seconds=1.0, seed=5)
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    assert {name: data for name, (data, _) in after.items()} == {name: data for name, (data, _) in before.items()}
    rewritten = {name for name in after if after[name][1] != before[name][1]}
    assert rewritten - {"labels.csv"} == {"song-0001.flac"}


def test_write_corpus_replaces_broken_and_foreign_files(tmp_path):
    corpus.write_corpus(tmp_path / "whole", songs=2, seconds=1.0, seed=5)
    corpus.write_corpus(tmp_path / "mixed", songs=2, seconds=1.0, seed=6)
    (tmp_path / "mixed" / "song-0000.flac").write_bytes(b"not a flac")
    corpus.write_corpus(tmp_path / "mixed", songs=2, seconds=1.0, seed=5)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "mixed" / path.name).read_bytes()


def test_written_songs_match_their_labels(tmp_path):
    corpus.write_corpus(tmp_path, songs=2, seconds=1.5)
    with (tmp_path / "labels.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert list(rows[0]) == ["file", "seed", "tonic", "mode", "tempo", "valence", "arousal", "quadrant"]
    for row in rows:
        song = corpus.compose(int(row["seed"]))
        assert (row["mode"], int(row["tempo"]), row["quadrant"]) == (song.mode, song.tempo, song.quadrant)
        audio, sample_rate = sf.read(tmp_path / row["file"], dtype="float32")
        assert sample_rate == corpus.SAMPLE_RATE
        assert np.abs(audio - corpus.render(song, 1.5)).max() <= 2**-15
