"""The performer's instruments: five tones and three drums, each a short waveform that starts on a sixteenth note.

A tone is the imaginary part of a polynomial in one complex exponential, the sum over n of a_n * z^n with
z = exp((2 pi i f - d) t): harmonic n decays n times as fast as the fundamental, as on a plucked string. Every hit of a
drum is the same waveform, and so is every note of one pitch and length: equal music has equal audio.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# Harmonics above this frequency are left out of a tone (hertz).
BANDWIDTH = 7000.0


class Note(NamedTuple):
    """One event of a score. Times are in sixteenth notes, `pitch` is a MIDI number (drums ignore it and `steps`)."""

    instrument: str
    start: int
    steps: int
    pitch: int
    gain: float


@dataclass(frozen=True)
class Tone:
    """A pitched instrument: loudness, harmonic amplitudes, decay of the fundamental (1/s), attack and release (s)."""

    gain: float
    harmonics: tuple[float, ...]
    decay: float
    attack: float
    release: float


TONES = {
    "lead": Tone(0.30, (1.0, 0.45, 0.30, 0.12, 0.06), 1.4, 0.004, 0.020),
    "pluck": Tone(0.27, (1.0, 0.60, 0.35, 0.20, 0.10), 2.5, 0.003, 0.030),
    "stab": Tone(0.13, (1.0, 0.50, 0.35, 0.25, 0.12), 2.0, 0.004, 0.025),
    "pad": Tone(0.13, (1.0, 0.35, 0.15), 0.25, 0.030, 0.060),
    "bass": Tone(0.38, (1.0, 0.60, 0.35, 0.20, 0.12, 0.06), 0.8, 0.005, 0.025),
}
DRUM_GAINS = {"kick": 0.40, "snare": 0.32, "hat": 0.10}


def tone(name: str, pitch: int, seconds: float, sample_rate: int) -> np.ndarray:
    """One note of instrument `name`, `seconds` long plus its release: [samples] float32, silent at both ends."""
    voice = TONES[name]
    frequency = 440.0 * 2.0 ** ((pitch - 69) / 12)
    time = np.arange(round((seconds + voice.release) * sample_rate)) / sample_rate
    audible = max(1, int(min(BANDWIDTH, sample_rate / 2) // frequency))
    z = np.exp((2j * np.pi * frequency - voice.decay) * time)
    wave = np.zeros_like(z)
    for amplitude in reversed(voice.harmonics[:audible]):
        wave += amplitude
        wave *= z
    attack = np.minimum(time / voice.attack, 1.0)
    release = np.clip((time[-1] - time) / voice.release, 0.0, 1.0) if len(time) else time
    # Half a cosine each way: no corner where the note starts or ends.
    envelope = np.sin(0.5 * np.pi * attack) ** 2 * np.sin(0.5 * np.pi * release) ** 2
    return (voice.gain / sum(voice.harmonics) * wave.imag * envelope).astype(np.float32)


def _noise(seconds: float, low: float, high: float, stream: int, sample_rate: int) -> np.ndarray:
    """White noise between `low` and `high` hertz with smooth band edges, unit RMS: [samples] float64."""
    samples = round(seconds * sample_rate)
    spectrum = np.fft.rfft(np.random.default_rng([0, stream]).standard_normal(samples))
    frequency = np.fft.rfftfreq(samples, 1 / sample_rate)
    spectrum *= 1 / np.sqrt((1 + (low / np.maximum(frequency, 1.0)) ** 4) * (1 + (frequency / high) ** 6))
    wave = np.fft.irfft(spectrum, samples)
    return wave / np.sqrt(np.mean(wave**2))


def drum(name: str, sample_rate: int) -> np.ndarray:
    """One hit of "kick", "snare" or "hat": [samples] float32, silent at both ends."""
    seconds = {"kick": 0.16, "snare": 0.13, "hat": 0.04}[name]
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    if name == "kick":
        # The pitch falls from 170 to 50 Hz; the phase is its integral.
        phase = 50.0 * time + 120.0 * 0.025 * (1.0 - np.exp(-time / 0.025))
        wave = np.sin(2 * np.pi * phase) * np.exp(-time / 0.07)
    elif name == "snare":
        body = np.sin(2 * np.pi * 185.0 * time) * np.exp(-time / 0.03)
        wave = 0.6 * body + 0.4 * _noise(seconds, 700.0, 4500.0, 1, sample_rate) * np.exp(-time / 0.035)
    else:
        wave = 0.5 * _noise(seconds, 5000.0, 9000.0, 2, sample_rate) * np.exp(-time / 0.010)
    fade = np.minimum(1.0, np.minimum(time / 0.001, (time[-1] - time) / 0.010))
    return (DRUM_GAINS[name] * wave * np.sin(0.5 * np.pi * fade) ** 2).astype(np.float32)


def mix(notes: list[Note], samples: int, step_samples: int, sample_rate: int) -> np.ndarray:
    """Play a score, `step_samples` samples per sixteenth note: [samples] float32, cut at the end."""
    audio = np.zeros(samples, np.float32)
    waves: dict[tuple[str, int, int], np.ndarray] = {}
    for note in notes:
        is_drum = note.instrument in DRUM_GAINS
        key = (note.instrument, 0, 0) if is_drum else (note.instrument, note.pitch, note.steps)
        if key not in waves:
            seconds = note.steps * step_samples / sample_rate
            waves[key] = (
                drum(note.instrument, sample_rate)
                if is_drum
                else tone(note.instrument, note.pitch, seconds, sample_rate)
            )
        start = note.start * step_samples
        if start < samples:
            wave = waves[key][: samples - start]
            audio[start : start + len(wave)] += np.float32(note.gain) * wave
    return audio
