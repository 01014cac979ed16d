"""Small priors of each kind of the released models: upsamplers with labels, and top priors with labels, with lyrics
before the codes (1b), with an encoder for lyrics (5b)."""

import dataclasses

import torch
from fastjukebox.engine.config import PRESETS, ConditionerConfig, LabelConfig, LyricConfig, PriorConfig
from fastjukebox.engine.labels import LevelLabels

# Windows of the sizes below begin within songs of 1 to 5 s at 1,000 Hz.
RATE, UNIT = 1000, 16
TIMED = LabelConfig(artists=9, genres=7, genre_slots=3, time_bins=11, min_seconds=1.0, max_seconds=5.0)
TOLD = dataclasses.replace(TIMED, time_bins=0)
TOP = PriorConfig(
    level=2, width=32, depth=5, heads=2, context_len=42, num_rows=7, codebook_size=20, labels=TIMED, separate_head=True
)
ENCODER = PriorConfig(level=2, width=16, depth=4, heads=2, context_len=12, num_rows=3, codebook_size=13)
KINDS = {
    "labels": TOP,
    "upsampler": dataclasses.replace(
        TOP,
        level=1,
        context_len=40,
        num_rows=5,
        labels=TOLD,
        separate_head=False,
        conditioner=ConditionerConfig(width=8, depth=2, stages=2, dilation_cycle=2),
    ),
    # Layers 9, 19, ... of the published patterns attend to the lyrics; the first is layer 18.
    "encoder": dataclasses.replace(
        TOP, depth=20, pattern_cycle=PRESETS["top-5b-lyrics"].pattern_cycle, lyrics=LyricConfig(13, 12, ENCODER)
    ),
    # Layer 15 sees the lyrics and the first codes: 14 positions of 10 lyrics and 32 codes; layer 47 would see all.
    "before": dataclasses.replace(
        TOP,
        depth=17,
        pattern_cycle=PRESETS["top-1b-lyrics"].pattern_cycle,
        separate_head=False,
        lyrics=LyricConfig(13, 10),
    ),
}
LABELS = LevelLabels(artist=4, genres=(2, 5), lyrics=tuple(1 + 5 * n % 12 for n in range(40)), song_samples=3210)


def make_inputs(config, batch=2):
    """Codes [B, context_len] as decoders take them, lyrics first where they are in the window; and upper codes."""
    codes = torch.randint(config.codebook_size, (batch, config.context_len))
    ratio = config.conditioner.upper_ratio if config.conditioner else 1
    return codes, torch.randint(config.codebook_size, (batch, config.window_len // ratio))


def conditions(prior, codes, upper_codes, start=7, labels=LABELS):
    """frame_cond, start_cond and lyrics of a window that begins with code `start`; its characters go into `codes`."""
    config = prior.config
    told = prior.label_conditions(labels, RATE, start * UNIT, config.window_len * UNIT)
    codes[:, : config.lyric_len] = torch.tensor(told.prompt, dtype=torch.long)
    frame_cond = told.frames
    if config.conditioner:
        frame_cond = prior.condition(upper_codes)
    elif frame_cond is not None:
        frame_cond = frame_cond.repeat(len(codes), 1, 1)
    return frame_cond, told.start.repeat(len(codes), 1, 1), told.lyrics
