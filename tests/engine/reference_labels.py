"""What the original tells a window of its song, restated number by number from the networks' tables."""

import math

import numpy as np
import torch


def window_lyrics(tokens, length, song, offset, samples):
    """Characters of a window: padded in front if there are few, else those around the middle of the window, as far into
    the lyrics as it is into the song."""
    if len(tokens) < length:
        return [0] * (length - len(tokens)) + list(tokens)
    half = length // 2
    middle = int(np.float32(len(tokens)) * (np.float32(offset) + np.float32(samples) / 2) / np.float32(song))
    middle = max(half, min(middle, len(tokens) - half))
    return [tokens[middle - half + i] for i in range(length)]


def time_bins(prior, rate, song, offset, samples):
    """The bins of the song's length (one), and of the time and the part of the song at each code of a window."""
    sizes, f = prior.config.labels, np.float32
    low, high, count = sizes.min_seconds * rate, sizes.max_seconds * rate, prior.config.window_len
    length = math.floor(sizes.time_bins * (f(song) - f(low)) / f(high - low))
    times, parts = [], []
    for i in range(count):
        step = f(i) / f(count)
        times.append(math.floor(f(sizes.time_bins) * ((f(offset) + f(samples) * step) / f(high))))
        first, last = f(offset) / f(song), min(f(offset + samples) / f(song), f(1))
        parts.append(math.floor(f(sizes.time_bins) * (first + (last - first) * step)))
    return [length] * count, times, parts


def told(prior, start, *, rate, unit, artist, genres, lyrics, song):
    """Characters before the codes, frame condition [1, T, W], start condition [1, 1, W], the encoder's output."""
    config, table = prior.config, prior.labels
    first = table.artist[artist].clone()
    for genre in genres:
        first += table.genre[genre]
    offset, samples = start * unit, config.window_len * unit
    cond, before, encoded = None, [], None
    if config.labels.time_bins:
        bins = time_bins(prior, rate, song, offset, samples)
        rows = [t[b] for t, b in zip((table.song_length, table.elapsed, table.progress), bins, strict=True)]
        nothing = torch.zeros(config.lyric_len, config.width)
        cond = torch.cat([nothing, rows[0] + rows[1] + rows[2]])[None]
    if config.lyrics:
        characters = window_lyrics(lyrics, config.lyrics.length, song, offset, samples)
        if config.lyrics.encoder:
            encoded = prior.lyric_encoder(torch.tensor([characters]))
        else:
            before = [config.codebook_size + character for character in characters]
    return before, cond, first.view(1, 1, -1), encoded
