"""The demo corpus: songs composed and played by one procedural performer, with their mood known by construction.

A song is built of spans, each holding one chord. Four spans are a phrase; a song is intro, phrases A B A ..., outro.
The motif of a phrase moves along with its chords, and its strong beats are chord tones. Notes start on multiples of 128
samples at 44.1 kHz, the top level's hop, so that equal notes lie alike in the codes wherever they fall.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf

from .run_folder import whole
from .synth import Note, mix

SAMPLE_RATE = 44100

# Semitones of the seven degrees above the tonic, brightest mode first, and the valence that each contributes.
MODES = {
    "ionian": (0, 2, 4, 5, 7, 9, 11),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "aeolian": (0, 2, 3, 5, 7, 8, 10),
}
MODE_VALENCE = {"ionian": 0.75, "mixolydian": 0.5, "dorian": -0.5, "aeolian": -0.75}

# Chord roots as degrees counted from 0; diminished triads are avoided.
PROGRESSIONS = {
    "ionian": ((0, 4, 5, 3), (0, 5, 3, 4), (0, 3, 1, 4), (3, 4, 0, 5), (0, 3, 0, 4)),
    "mixolydian": ((0, 6, 3, 0), (0, 6, 0, 3), (3, 6, 0, 0), (0, 4, 6, 3)),
    "dorian": ((0, 3, 0, 3), (0, 6, 3, 0), (0, 2, 6, 3), (2, 3, 0, 6)),
    "aeolian": ((0, 5, 2, 6), (0, 3, 5, 4), (5, 6, 0, 0), (0, 6, 5, 4), (3, 0, 5, 6)),
}

# Samples of a sixteenth note, in hops of 128 at 44.1 kHz: within 1 % of the nominal tempo.
TEMPO_HOPS = {80: 64, 96: 54, 112: 46, 128: 40, 144: 36}
TEMPI = tuple(TEMPO_HOPS)
# A slow song has two chords to the bar of 16 sixteenths, a faster one has one.
SPAN_STEPS = {80: 8, 96: 8, 112: 16, 128: 16, 144: 16}

# Melody onsets within a span, for spans of 8 and of 16 steps.
RHYTHMS = {
    8: ((0, 4), (0, 4, 6), (0, 2, 4), (0, 3, 6), (0, 2, 4, 6)),
    16: ((0, 4, 6, 8, 12), (0, 3, 6, 8, 12), (0, 4, 8, 10, 12), (0, 2, 4, 8, 12, 14), (0, 3, 6, 8, 11, 14)),
}
ARPEGGIOS = ((0, 1, 2, 1), (0, 2, 1, 2), (2, 1, 0, 1), (0, 1, 2, 0))

# Indexed by energy, 0 calm to 4 lively: steps of the bar at which each drum is hit and the bass plays.
KICKS = ((), (0,), (0, 8), (0, 8, 10), (0, 4, 8, 12))
SNARES = ((), (), (12,), (4, 12), (4, 12))
HATS = ((), (4, 12), (0, 4, 8, 12), (0, 2, 4, 6, 8, 10, 12, 14), (0, 2, 3, 4, 6, 7, 8, 10, 11, 12, 14, 15))
BASSES = ((0, 8), (0, 8), (0, 6, 8, 14), (0, 3, 6, 8, 11, 14), (0, 2, 4, 6, 8, 10, 12, 14))

# RMS of a song (dBFS) = LOUDNESS + LOUDNESS_RANGE * arousal. Drum hits that pass KNEE are bent to stay below PEAK.
LOUDNESS = -17.0
LOUDNESS_RANGE = 3.5
KNEE = 0.55
PEAK = 0.9


@dataclass(frozen=True)
class Phrase:
    """Four chord roots (degrees), the motif's onsets (steps) and contour (degrees), the order of broken chords."""

    progression: tuple[int, ...]
    rhythm: tuple[int, ...]
    contour: tuple[int, ...]
    arpeggio: tuple[int, ...]


@dataclass(frozen=True)
class Song:
    """What is played. `tonic` 0 (C) to 11 (B), `tempo` in bpm, `valence` and `arousal` in -1..1, `energy` 0..4."""

    seed: int
    tonic: int
    mode: str
    tempo: int
    valence: float
    arousal: float
    energy: int
    verse: Phrase
    chorus: Phrase

    @property
    def quadrant(self) -> str:
        """AP, DP, AU or DU: activated or deactivated, pleasant or unpleasant."""
        return ("A" if self.arousal >= 0 else "D") + ("P" if self.valence >= 0 else "U")


def _phrase(rng: np.random.Generator, progression: tuple[int, ...], span_steps: int) -> Phrase:
    rhythms = RHYTHMS[span_steps]
    rhythm = rhythms[rng.integers(len(rhythms))]
    # Mostly steps, some thirds, never far from where the motif began.
    contour = [0]
    for _ in rhythm[1:]:
        contour.append(int(np.clip(contour[-1] + rng.choice((-2, -1, -1, 1, 1, 2)), -4, 4)))
    return Phrase(progression, rhythm, tuple(contour), ARPEGGIOS[rng.integers(len(ARPEGGIOS))])


def compose(seed: int) -> Song:
    """The song of a seed (not negative). The four quadrants are equally likely."""
    rng = np.random.default_rng([seed, 0])
    pleasant, activated = rng.integers(2, size=2)
    mode = tuple(MODES)[rng.integers(2) + (0 if pleasant else 2)]
    valence = MODE_VALENCE[mode] + rng.uniform(-0.25, 0.25)
    arousal = rng.uniform(0.1, 1.0) * (1 if activated else -1)
    energy = min(4, int((arousal + 1) * 2.5))
    tempo = TEMPI[int(np.clip(round(2 * arousal + 2 + rng.uniform(-0.6, 0.6)), 0, 4))]
    choices = PROGRESSIONS[mode]
    # The verse starts at home: its progression begins on the tonic.
    first = rng.choice([index for index, chords in enumerate(choices) if chords[0] == 0])
    second = rng.choice([index for index in range(len(choices)) if index != first])
    verse = _phrase(rng, choices[first], SPAN_STEPS[tempo])
    chorus = _phrase(rng, choices[second], SPAN_STEPS[tempo])
    tonic = int(rng.integers(12))
    return Song(seed, tonic, mode, tempo, round(float(valence), 3), round(float(arousal), 3), energy, verse, chorus)


def _pitch(song: Song, degree: int) -> int:
    """MIDI number of a scale degree; degree 0 is the tonic in the octave of middle C."""
    return 60 + song.tonic + 12 * (degree // 7) + MODES[song.mode][degree % 7]


def _chord_tone(degree: int, root: int) -> int:
    """The tone of the triad on `root` that is nearest to `degree` (degrees)."""
    return min(
        (degree + move for move in (0, 1, -1, 2, -2)), key=lambda d: ((d - root) % 7 not in (0, 2, 4), abs(d - degree))
    )


def _triad(song: Song, root: int) -> list[int]:
    """The chord's three pitches in close position, between G3 and F#4: chords change by small moves."""
    return sorted(55 + (_pitch(song, root + third) - 55) % 12 for third in (0, 2, 4))


def _melody(song: Song, phrase: Phrase, start: int, span: int, repeat: int) -> list[Note]:
    """The lead's notes in one span (0..3) of a phrase that is played for the `repeat`-th time."""
    length = SPAN_STEPS[song.tempo]
    root = phrase.progression[span]
    # Brighter songs sing higher; the chorus lies a third above the verse.
    center = 72 + 3 * song.valence + (3 if phrase is song.chorus else 0)
    home = _chord_tone(round((center - 60 - song.tonic) * 7 / 12), root)
    onsets, contour = phrase.rhythm, phrase.contour
    if span == 3:
        # The phrase ends on a long note.
        onsets, contour = onsets[:2], (0, 0)
    elif span == 1 and repeat % 2 == 1:
        contour = tuple(-move for move in contour)
    strong = 4 if length == 8 else 8
    notes = []
    for index, (onset, move) in enumerate(zip(onsets, contour, strict=False)):
        end = onsets[index + 1] if index + 1 < len(onsets) else length
        is_strong = onset % strong == 0 or index + 1 == len(onsets)
        degree = _chord_tone(home + move, root) if is_strong else home + move
        notes.append(Note("lead", start + onset, min(end - onset, 8), _pitch(song, degree), 1.0 if is_strong else 0.8))
    return notes


def _chords(song: Song, phrase: Phrase, root: int, start: int, steps: int) -> list[Note]:
    """One chord: calm songs hold it in the verse and break it in the chorus, lively ones break it, then strike it."""
    triad = _triad(song, root)
    is_chorus = phrase is song.chorus
    if song.arousal < 0 and not is_chorus:
        return [Note("pad", start, steps, pitch, 1.0) for pitch in triad]
    if song.arousal >= 0 and is_chorus:
        return [Note("stab", start + beat + 2, 2, pitch, 1.0) for beat in range(0, steps, 4) for pitch in triad]
    return [
        Note("pluck", start + step, 2, triad[phrase.arpeggio[step // 2 % 4]], 1.0 if step % 8 == 0 else 0.8)
        for step in range(0, steps, 2)
    ]


def _bass(song: Song, root: int, start: int, steps: int) -> list[Note]:
    pitch = 36 + (_pitch(song, root) - 36) % 12
    onsets = [onset for onset in BASSES[song.energy] if onset < steps]
    ends = [*onsets[1:], steps]
    return [Note("bass", start + on, end - on, pitch, 1.0) for on, end in zip(onsets, ends, strict=True)]


def _drums(song: Song, start: int, steps: int, is_fill: bool) -> list[Note]:
    notes = []
    for step in range(start, start + steps):
        beat = step % 16
        if beat in KICKS[song.energy]:
            notes.append(Note("kick", step, 1, 0, 1.0))
        if beat in SNARES[song.energy] or (is_fill and song.energy >= 2 and beat in (10, 13, 14)):
            notes.append(Note("snare", step, 1, 0, 1.0))
        if beat in HATS[song.energy]:
            notes.append(Note("hat", step, 1, 0, 1.0 if beat % 4 == 0 else 0.7))
    return notes


def arrange(song: Song, steps: int) -> list[Note]:
    """The score of a song of `steps` sixteenth notes: intro, as many phrases A B A ... as fit, outro on the tonic."""
    span_steps = SPAN_STEPS[song.tempo]
    spans = max(1, steps // span_steps)
    phrases = max(1, (spans - 4) // 4)
    notes: list[Note] = []
    for span in range(spans):
        start = span * span_steps
        index, position = divmod(span - 2, 4)
        if span < 2:
            # Intro: chords alone, then the hats count in.
            root = song.verse.progression[span]
            notes += _chords(song, song.verse, root, start, span_steps)
            notes += [note for note in _drums(song, start, span_steps, False) if note.instrument == "hat" and span == 1]
        elif index < phrases:
            phrase = song.chorus if index % 2 == 1 and index < phrases - 1 else song.verse
            root = phrase.progression[position]
            notes += _chords(song, phrase, root, start, span_steps)
            notes += _bass(song, root, start, span_steps)
            notes += _melody(song, phrase, start, position, index // 2)
            notes += _drums(song, start, span_steps, position == 3)
        elif span < spans - 1:
            # Outro: the melody and the snare have left.
            root = song.verse.progression[position]
            notes += _chords(song, song.verse, root, start, span_steps) + _bass(song, root, start, span_steps)
            notes += [note for note in _drums(song, start, span_steps, False) if note.instrument != "snare"]
        else:
            held = steps - start
            pitches = [("pad", pitch) for pitch in _triad(song, 0)]
            pitches += [("bass", 36 + song.tonic), ("lead", _triad(song, 0)[-1] + 12)]
            notes += [Note(instrument, start, held, pitch, 1.0) for instrument, pitch in pitches]
    return notes


def render(song: Song, seconds: float, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Play a song: [round(seconds * sample_rate)] float32, its RMS set by its arousal, its peak at most 0.9."""
    samples = round(seconds * sample_rate)
    step_samples = round(TEMPO_HOPS[song.tempo] * 128 * sample_rate / SAMPLE_RATE)
    audio = mix(arrange(song, -(-samples // step_samples)), samples, step_samples, sample_rate)
    # The last note rings past the end: fade it out.
    fade = min(samples, sample_rate // 20)
    audio[samples - fade :] *= np.cos(0.5 * np.pi * np.linspace(0, 1, fade)) ** 2
    if not audio.any():
        return audio
    loudness = 10 ** ((LOUDNESS + LOUDNESS_RANGE * song.arousal) / 20)
    rms = np.sqrt(np.mean(audio.astype(np.float64) ** 2))
    audio *= np.float32(loudness / rms)
    loud = np.flatnonzero(np.abs(audio) > KNEE)
    excess = (np.abs(audio[loud]) - KNEE) / (PEAK - KNEE)
    audio[loud] = np.sign(audio[loud]) * (KNEE + (PEAK - KNEE) * np.tanh(excess))
    return audio


def _is_complete(path: Path, song: Song, samples: int) -> bool:
    """Whether `path` holds this song at this length: the file's comment names the song."""
    try:
        with sf.SoundFile(path) as file:
            return (file.frames, file.samplerate, file.comment) == (samples, SAMPLE_RATE, repr(song))
    except sf.LibsndfileError:
        return False


def write_corpus(folder: Path, songs: int, seconds: float, seed: int = 0) -> None:
    """Write song-0000.flac ... (44.1 kHz mono PCM_16) and, last, labels.csv; files that are already there are kept.

    Song i has seed `seed` * 100000 + i, so corpora of different seeds share no song.
    """
    if songs > 100_000:
        raise ValueError(f"at most 100000 songs in a corpus, got {songs}")
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str | int | float, ...]] = []
    for index in range(songs):
        song = compose(seed * 100_000 + index)
        path = folder / f"song-{index:04d}.flac"
        if not _is_complete(path, song, round(seconds * SAMPLE_RATE)):
            audio = render(song, seconds)
            with whole(path) as part, sf.SoundFile(part, "w", SAMPLE_RATE, 1, "PCM_16", format="FLAC") as file:
                file.comment = repr(song)
                file.write(audio)
        rows.append(
            (path.name, song.seed, song.tonic, song.mode, song.tempo, song.valence, song.arousal, song.quadrant)
        )
    with whole(folder / "labels.csv") as part, part.open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(("file", "seed", "tonic", "mode", "tempo", "valence", "arousal", "quadrant"))
        writer.writerows(rows)
