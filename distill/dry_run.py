"""What a run would be, without doing it: parameters, memory, steps."""

from __future__ import annotations

import torch
from torch import nn

from ..engine.config import PriorConfig
from ..engine.prior import Prior
from ..engine.vqvae import VQVAE
from .systems import SYSTEMS, TEACHER
from .work import Work


def describe(work: Work, name: str, level: int) -> list[str]:
    """The runs of "vqvae" or a system at one level, a line each."""
    return [_vqvae_line(work, level)] if name == "vqvae" else _prior_lines(work, name, level)


def _vqvae_line(work: Work, level: int) -> str:
    preset, settings = work.preset, work.preset.vqvae[level]
    config = preset.config.vqvae
    with torch.device("meta"):
        vqvae = VQVAE(config)
    parameters = _count(nn.ModuleList((vqvae.encoders[level], vqvae.decoders[level])))
    # Weights, gradients and two moments, FP32.
    return (
        f"vqvae level {level}: {config.codebook_size} codes, {parameters / 1e6:.1f} M parameters, "
        f"about {4 * 4 * parameters / 1e9:.2f} GB for weights and optimizer "
        f"(batch {settings.batch} of {preset.crop / config.sample_rate:.2f} s); {settings.steps} steps"
    )


def _prior_lines(work: Work, name: str, level: int) -> list[str]:
    """A teacher that grows has two."""
    recipe, preset = SYSTEMS[name], work.preset
    epoch = work.windows(level).epoch_steps(preset.prior.batch) if work.has_codes else None
    teacher = 0
    if recipe.teacher:
        with torch.device("meta"):
            teacher = _count(Prior(preset.prior_config(SYSTEMS[recipe.teacher], level)))
    config, steps = preset.prior_config(recipe, level), epoch and preset.steps(recipe, level, epoch)
    rate = preset.rate(recipe, level)
    lines = [_prior_line(work, f"{name} level {level}", config, teacher, steps, epoch, rate)]
    if name == TEACHER and preset.epochs[level].shallow:
        steps = epoch and preset.shallow_steps(level, epoch)
        first = f"{name} level {level}, before it grows"
        lines.insert(0, _prior_line(work, first, preset.shallow_config(level), 0, steps, epoch, 1.0))
    return lines


def _prior_line(
    work: Work, name: str, config: PriorConfig, teacher: int, steps: int | None, epoch: int | None, rate: float
) -> str:
    """`teacher`: the parameters of the network that this one imitates. `rate`: the factor of its learning rates."""
    with torch.device("meta"):
        parameters = _count(Prior(config))
    # Weights, gradients, two moments and the average, FP32; and the teacher's weights.
    held = 5 * 4 * parameters + 4 * teacher
    settings = work.training.slower(rate)
    matrices = settings.matrix_learning_rate
    rates = f"{settings.learning_rate:g}" + (f" ({matrices:g} of matrices)" if matrices is not None else "")
    # What a layer keeps for its backward pass: the input alone if it is computed again, else about 14 vectors.
    vectors = 1 if settings.computing.recompute else 14
    codes = settings.batch * config.context_len
    activations = 4 * codes * config.width * vectors * config.depth + 8 * codes * config.codebook_size
    return (
        f"{name}: {config.depth} layers of width {config.width}, {parameters / 1e6:.1f} M parameters, "
        f"about {held / 1e9:.2f} GB for weights and optimizer and {activations / 1e9:.2f} GB for activations "
        f"(batch {settings.batch} of {config.context_len} codes); learning rate {rates}; "
        + (f"{steps} steps, an epoch is {epoch}" if epoch else "its steps are known when WORK/codes is there")
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
