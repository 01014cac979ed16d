"""Folders of tiny random models that know labels, one for each kind of top prior, and what a request tells them."""

import dataclasses

import random_models
from fastjukebox.engine import JukeboxConfig, Labels, SamplingParams, checkpoint
from fastjukebox.engine.config import LabelConfig, LyricConfig, PriorConfig
from fastjukebox.engine.labels import Names
from fastjukebox.engine.patterns import Pattern

RATE, UNITS = 44100, (8, 32, 128)
# 27 codes at the top, where a window has 24.
SECONDS = 27 * 128 / RATE
TEXT = "Ein Lied, das keiner je gehört hat, und das keiner je vergißt: la la la (la)! 'So, so,' sang sie."
LABELS = Labels("Some Body", "slow dance", TEXT, song_seconds=0.2)
PARAMS = SamplingParams(SECONDS, seed=11, num_samples=2, temperature=2.0, hop_fraction=(0.75, 0.75, 0.5), labels=LABELS)
NAMES = Names({"unknown": 0, "some_body": 3, "nobody": 5}, {"unknown": 0, "slow": 2, "dance": 4, "waltz": 1})
# The model of lyrics before the codes knows other lists, as the released one does.
OTHER_NAMES = Names({"some body": 6, "nobody": 1}, {"slow dance": 8, "waltz": 2})
FACTORED = (Pattern.ROW, Pattern.COLUMN, Pattern.PREVIOUS_ROW)


def top_priors():
    time = {"time_bins": 9, "min_seconds": 0.1, "max_seconds": 0.25}
    labels = LabelConfig(7, 6, 3, **time)
    top = PriorConfig(2, 32, 3, 2, 24, 4, codebook_size=37, labels=labels, separate_head=True)
    encoder = PriorConfig(2, 16, 3, 2, 20, 5, codebook_size=80)
    return {
        "labels": top,
        "encoder": dataclasses.replace(
            top, depth=4, pattern_cycle=(*FACTORED, Pattern.CROSS), lyrics=LyricConfig(80, 20, encoder)
        ),
        "before": dataclasses.replace(
            top,
            depth=4,
            context_len=36,
            labels=LabelConfig(9, 10, 1, **time),
            pattern_cycle=(*FACTORED, Pattern.LYRICS),
            separate_head=False,
            lyrics=LyricConfig(79, 12),
        ),
    }


def write_model(folder, kind, tiny_config):
    upsamplers = (dataclasses.replace(prior, labels=LabelConfig(7, 6, 3)) for prior in tiny_config.priors[:2])
    return write_labelled(folder, JukeboxConfig(tiny_config.vqvae, (*upsamplers, top_priors()[kind])), seed=3)


def write_labelled(folder, config, seed):
    """A model of random weights, with names of artists and genres where it takes labels."""
    random_models.write(folder, config, seed)
    for prior in config.priors:
        if prior.labels:
            checkpoint.save_names(folder, prior.level, NAMES if prior.labels.genre_slots > 1 else OTHER_NAMES)
    return folder
