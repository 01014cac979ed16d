"""What a run would be, without doing it: parameters, memory, steps."""

from __future__ import annotations

import math

import torch
from torch import nn

from ..engine.config import PriorConfig
from ..engine.prior import Prior
from ..engine.vqvae import VQVAE
from .prior import PriorTraining, count_parameters
from .systems import TEACHER, system
from .work import Work


def describe(work: Work, name: str, level: int) -> list[str]:
    """The runs of "vqvae" or a system at one level, a line each."""
    if work.teacher and work.is_given(name):
        return [f"{name} level {level}: that of {work.teacher.folder}"]
    return [_vqvae_line(work, level)] if name == "vqvae" else _prior_lines(work, name, level)


def _vqvae_line(work: Work, level: int) -> str:
    preset, settings = work.preset, work.preset.vqvae[level]
    config = preset.config.vqvae
    with torch.device("meta"):
        vqvae = VQVAE(config)
    parameters = count_parameters(nn.ModuleList((vqvae.encoders[level], vqvae.decoders[level])))
    # Of each full-rate sample: some 18 vectors of spectrograms' cells, and what the convolutions of both halves keep.
    rates = sum(
        math.prod(config.strides[lower] ** config.downs[lower] for lower in range(below)) ** -1.0 * stride**-stage
        for below, (downs, stride) in enumerate(zip(config.downs[: level + 1], config.strides, strict=False))
        for stage in range(1, downs + 1)
    )
    wide = config.multipliers[level]
    kept = 245 + 4.8 * wide * config.width * wide * config.depth * rates
    activations = 4 * settings.batch * preset.crop * kept
    # Weights, gradients and two moments, FP32.
    return (
        f"vqvae level {level}: {config.codebook_size} codes, {parameters / 1e6:.1f} M parameters, "
        f"about {4 * 4 * parameters / 1e9:.2f} GB for weights and optimizer "
        f"and {activations / 1e9:.2f} GB for activations (batch {settings.batch} of "
        f"{preset.crop / config.sample_rate:.2f} s); {settings.steps} steps"
    )


def _prior_lines(work: Work, name: str, level: int) -> list[str]:
    """A teacher that grows has two."""
    recipe, preset = system(name), work.preset
    epoch = epoch_steps(work, level)
    teacher = 0
    if recipe.teacher:
        with torch.device("meta"):
            teacher = count_parameters(Prior(preset.prior_config(system(recipe.teacher), level)))
    config, steps = preset.prior_config(recipe, level), preset.steps(recipe, level, epoch)
    rate = preset.rate(recipe, level)
    lines = [
        _prior_line(work, f"{name} level {level}", config, teacher, steps, epoch, rate, recipe.objective == "layers")
    ]
    if name == TEACHER and preset.epochs[level].shallow:
        steps = preset.shallow_steps(level, epoch)
        first = f"{name} level {level}, before it grows"
        lines.insert(0, _prior_line(work, first, preset.shallow_config(level), 0, steps, epoch, 1.0))
    return lines


def epoch_steps(work: Work, level: int) -> int:
    """Batches of an epoch; without codes those of the preset's corpus."""
    if work.has_codes:
        return work.windows(level, counted=True).epoch_steps(work.preset.prior.batch)
    config, corpus = work.preset.config, work.preset.corpus
    samples = (corpus.songs - corpus.held_out) * corpus.seconds * config.vqvae.sample_rate
    codes = samples / config.vqvae.samples_per_code(level)
    return math.ceil(codes / (work.preset.prior.batch * config.priors[level].window_len))


def _prior_line(
    work: Work, name: str, config: PriorConfig, teacher: int, steps: int, epoch: int, rate: float, layers: bool = False
) -> str:
    """`teacher`: the parameters of the network that this one imitates. `rate`: the factor of its learning rates.
    `layers`: it imitates the teacher's layers."""
    with torch.device("meta"):
        parameters = count_parameters(Prior(config))
    # Weights, gradients, two moments and the average, FP32; and the teacher's weights.
    held = 5 * 4 * parameters + 4 * teacher
    settings = work.training.slower(rate)
    matrices = settings.matrix_learning_rate
    rates = f"{settings.learning_rate:g}" + (f" ({matrices:g} of matrices)" if matrices is not None else "")
    about = "" if work.has_codes else "about "
    activations = _activations(config, min(settings.batch, settings.micro_batch or settings.batch), settings, layers)
    return (
        f"{name}: {config.depth} layers of width {config.width}, {parameters / 1e6:.1f} M parameters, "
        f"about {held / 1e9:.2f} GB for weights and optimizer and {activations / 1e9:.2f} GB for activations "
        f"(batch {settings.batch} of {config.window_len} codes); learning rate {rates}; "
        f"{about}{steps} steps, an epoch is {about}{epoch}"
    )


def _activations(config: PriorConfig, windows: int, settings: PriorTraining, layers: bool) -> float:
    """Bytes at the peak of a step, of so many windows at a time; counted on the paper's sizes, right within a fifth."""
    codes = windows * config.context_len
    # What a layer keeps for its backward pass: the input alone if it is computed again, else about 14 vectors.
    vectors = 1.0 if settings.computing.recompute else 14.0
    # The teacher's hidden states, the queries, keys and values, and the gradients of the attention distance.
    vectors += 1.875 if layers else 0.0
    total = 4 * codes * config.width * (vectors * config.depth + 4) + 8 * codes * config.codebook_size
    if upper := config.conditioner:
        total += 4 * codes * upper.width * (5 + 2.5 * upper.depth / upper.upper_ratio)
    return total
