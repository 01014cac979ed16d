"""The sizes of the demo stack: networks, corpus, and how long each stage trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..engine.config import ConditionerConfig, JukeboxConfig, PriorConfig, VQVAEConfig
from .prior import PriorTraining
from .stage import Budget
from .vqvae import VQVAETraining


@dataclass(frozen=True)
class DemoSizes:
    """Everything that decides the stack, beside the seed."""

    config: JukeboxConfig
    # Songs at each level: the lower a level, the more codes a song has.
    songs: tuple[int, ...]
    held_out: int
    seconds: float
    # Samples of a training crop.
    crop: int
    vqvae: tuple[VQVAETraining, ...]
    vqvae_budgets: tuple[Budget, ...]
    priors: tuple[PriorTraining, ...]
    prior_budgets: tuple[Budget, ...]


def _stack(vqvae: VQVAEConfig, width: int, depths: tuple[int, ...], context_len: int, num_rows: int) -> JukeboxConfig:
    """One prior of `width` per level over contexts of `context_len` codes; the conditioners are half as wide."""
    priors = []
    for level, depth in enumerate(depths):
        conditioner = None
        if level + 1 < vqvae.levels:
            stages, stride = vqvae.downs[level + 1], vqvae.strides[level + 1]
            conditioner = ConditionerConfig(width // 2, 4, stages, stride)
        priors.append(
            PriorConfig(level, width, depth, 2, context_len, num_rows, vqvae.codebook_size, conditioner=conditioner)
        )
    return JukeboxConfig(vqvae, tuple(priors))


PRESETS = {
    "demo": DemoSizes(
        config=_stack(
            VQVAEConfig(codebook_size=512, code_dim=32, width=32, depth=3, multipliers=(1, 1, 1)),
            width=128,
            depths=(9, 9, 12),
            context_len=1024,
            num_rows=32,
        ),
        songs=(48, 96, 192),
        held_out=8,
        seconds=24.0,
        crop=16384,
        # The bottom level is the one that is heard: there, quiet high bands count more.
        vqvae=(VQVAETraining(log_spectral=0.5), VQVAETraining(), VQVAETraining()),
        vqvae_budgets=(Budget(5000, 22, 1e-3), Budget(5000, 18, 1e-3), Budget(5000, 22, 1e-3)),
        priors=(PriorTraining(), PriorTraining(), PriorTraining()),
        prior_budgets=(Budget(8000, 36, 1.5e-3), Budget(8000, 48.5, 1.5e-3), Budget(8000, 44, 1.5e-3)),
    ),
    # The whole path in seconds, for the tests.
    "tiny": DemoSizes(
        config=_stack(
            VQVAEConfig(codebook_size=16, code_dim=8, width=8, depth=1, multipliers=(1, 1, 1)),
            width=16,
            depths=(3, 3, 3),
            context_len=32,
            num_rows=4,
        ),
        songs=(3, 3, 3),
        held_out=1,
        seconds=1.0,
        crop=8192,
        vqvae=(VQVAETraining(quantize_from=1),) * 3,
        vqvae_budgets=(Budget(3, 1, 1e-3),) * 3,
        priors=(PriorTraining(),) * 3,
        prior_budgets=(Budget(3, 1, 1e-3),) * 3,
    ),
}


def with_budget(sizes: DemoSizes, changes: Mapping[str, Mapping[str, float]]) -> DemoSizes:
    """Other `steps` or `minutes` for single stages: {"prior_2": {"minutes": 10}}.

    Raises:
        ValueError: a stage without a budget.
    """
    for name, values in changes.items():
        kind, _, number = name.partition("_")
        field = {"vqvae": "vqvae_budgets", "prior": "prior_budgets"}.get(kind)
        if field is None or number not in {str(level) for level in range(sizes.config.vqvae.levels)}:
            raise ValueError(f"{name} has no budget; name a stage such as vqvae_0 or prior_2")
        budgets = list(getattr(sizes, field))
        budgets[int(number)] = replace(budgets[int(number)], **values)
        sizes = replace(sizes, **{field: tuple(budgets)})
    return sizes
