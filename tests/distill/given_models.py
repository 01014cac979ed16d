"""A tiny trained model of each kind that somebody may give as a teacher, and a folder of songs with labels."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import soundfile
from fastjukebox.engine import JukeboxConfig, VQVAEConfig
from fastjukebox.engine.config import ConditionerConfig, LabelConfig, PriorConfig

sys.path.append(str(Path(__file__).parents[1] / "engine"))
from labelled_models import top_priors, write_labelled

RATE = 44100
KINDS = ("plain", *top_priors())
# (file, artist, genre, lyrics); the last has no row.
SONGS = [
    ("a.wav", "Some Body", "slow dance", "La, la: so sang sie."),
    ("b/c.wav", "5", "waltz", ""),
    ("d.wav", "", "", "Ein Lied, das keiner je gehört hat, und das keiner je vergißt: la la la!"),
    ("e.wav", None, None, None),
]


def write_given(folder, kind, depth=8):
    """A model whose top prior is of `kind`, in FP32 values that FP16 does not have."""
    labels = None if kind == "plain" else LabelConfig(7, 6, 3)
    lower = [
        PriorConfig(
            level, 32, 6, 2, length, rows, codebook_size=37, conditioner=ConditionerConfig(16, 2), labels=labels
        )
        for level, length, rows in ((0, 48, 6), (1, 32, 4))
    ]
    top = PriorConfig(2, 32, 3, 2, 24, 4, codebook_size=37) if kind == "plain" else top_priors()[kind]
    vqvae = VQVAEConfig(37, 8, width=8, depth=1, multipliers=(1, 1, 1))
    config = JukeboxConfig(vqvae, (*lower, dataclasses.replace(top, depth=depth)))
    return write_labelled(folder, config, seed=4)


def write_songs(folder, seconds=0.19):
    """Noise, and labels.csv."""
    rows = ["file,artist,genre,lyrics"]
    for index, (name, *labels) in enumerate(SONGS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(index).standard_normal(round(seconds * RATE) + 100 * index)
        soundfile.write(folder / name, 0.2 * noise, RATE)
        if labels[0] is not None:
            rows.append(",".join(f'"{value}"' for value in (name, *labels)))
    (folder / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder
