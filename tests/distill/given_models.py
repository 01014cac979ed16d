"""A tiny trained model of each kind that somebody may give as a teacher, and a folder of songs with labels."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
from fastjukebox.engine import VQVAE, JukeboxConfig, Prior, VQVAEConfig, checkpoint
from fastjukebox.engine.config import ConditionerConfig, LabelConfig, PriorConfig

sys.path.append(str(Path(__file__).parents[1] / "engine"))
from labelled_models import NAMES, OTHER_NAMES, top_priors

RATE = 44100
KINDS = ("plain", *top_priors())
# (file, artist, genre, lyrics); the last has no row.
SONGS = [
    ("a.wav", "Some Body", "slow dance", "La, la: so sang sie."),
    ("b/c.wav", "5", "waltz", ""),
    ("d.wav", "", "", "Ein Lied, das keiner je gehört hat, und das keiner je vergißt: la la la!"),
    ("e.wav", None, None, None),
]


def random_weights(network):
    """Weights large enough that no term of a prior's output can go missing unnoticed."""
    with torch.no_grad():
        for name, tensor in sorted(network.state_dict().items()):
            noise = torch.randn(tensor.shape)
            if name.endswith(("weight", "kernel")) and tensor.dim() == 1:
                tensor.copy_(1 + 0.2 * noise)
            else:
                tensor.copy_(noise * (0.3 if tensor.dim() < 2 else 0.8 * tensor.shape[-2] ** -0.5))
    return network


def write_given(folder, kind, depth=8):
    """A model whose top prior is of `kind`, in FP32 values that FP16 does not have."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        labels = None if kind == "plain" else LabelConfig(7, 6, 3)
        conditioner = ConditionerConfig(16, 2)
        sizes = ((0, 48, 6), (1, 32, 4))
        lower = [
            PriorConfig(level, 32, 6, 2, length, rows, codebook_size=37, conditioner=conditioner, labels=labels)
            for level, length, rows in sizes
        ]
        if kind == "plain":
            top = PriorConfig(2, 32, depth, 2, 24, 4, codebook_size=37)
        else:
            top = dataclasses.replace(top_priors()[kind], depth=depth)
        vqvae = VQVAEConfig(37, 8, width=8, depth=1, multipliers=(1, 1, 1))
        config = JukeboxConfig(vqvae, (*lower, top))
        checkpoint.save_config(folder, config)
        checkpoint.save_network(folder / checkpoint.VQVAE_FILE, random_weights(VQVAE(vqvae)), torch.float32)
        for level, prior in enumerate(config.priors):
            checkpoint.save_network(folder / checkpoint.prior_file(level), random_weights(Prior(prior)), torch.float32)
            if prior.labels:
                names = NAMES if prior.labels.genre_slots > 1 else OTHER_NAMES
                checkpoint.save_names(folder, level, names)
    return folder


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
