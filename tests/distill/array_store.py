"""A code store made of arrays, for training without files."""

from types import SimpleNamespace

import numpy as np
from fastjukebox.distill.audio_folder import Song
from fastjukebox.distill.code_windows import CodeWindows


def array_store(songs, held_out, ratio=4):
    """`songs`: for each song its codes by level, the lower level first; `held_out`: the numbers of those held out."""
    entries = tuple(
        Song(f"{s}", float(len(levels[-1])), 1, 1, "held_out" if s in held_out else "train")
        for s, levels in enumerate(songs)
    )
    return SimpleNamespace(
        path="store",
        songs=entries,
        codes=lambda song, level: songs[song][level],
        samples_per_code=(8, 8 * ratio),
        sample_rate=8,
        levels=(0, 1),
        identity=lambda: f"{len(songs)} songs",
        indices=lambda split: [index for index, song in enumerate(entries) if song.split == split],
    )


def melody(seed, upper_count=64, ratio=4, size=8):
    """One song: upper codes, and lower codes that follow from them and from the code before."""
    upper = np.random.default_rng(seed).integers(0, size, upper_count).astype(np.int16)
    lower = ((upper.repeat(ratio) * 5 + np.tile(np.arange(ratio), upper_count) * 3) % size).astype(np.int16)
    return lower, upper


def melody_windows(context_len=32, seed=0, ratio=4, size=8) -> CodeWindows:
    """Windows of level 0 of two songs that are the same, one of them held out."""
    songs = [melody(1, ratio=ratio, size=size)] * 2
    return CodeWindows(array_store(songs, {0}, ratio), 0, context_len, ratio, seed, with_upper=True)
