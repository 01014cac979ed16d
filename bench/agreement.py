"""No figure of a decoder whose codes are not those of the eager one."""

from __future__ import annotations

from functools import lru_cache

import torch

from ..engine.config import PriorConfig
from ..engine.decoder import Decoder, LevelSampling, WindowTask, choose_backend
from ..engine.prior import Prior
from .stand_in import build

SIZES = PriorConfig(level=0, width=64, depth=6, heads=1, context_len=64, num_rows=8, codebook_size=256)
BATCH = 4
# From the second row to the last: the patterns see all that they can.
POSITIONS = range(12, SIZES.context_len, 3)
# Of the codes; near ties may fall otherwise, with int8 weights more of them.
EXACT, INT8 = 0.99, 0.9


def small_prior() -> Prior:
    """Six layers of weights large enough for every one of them to change the codes."""
    prior = build(Prior, SIZES, torch.device("cpu"), torch.float32)
    for parameter in prior.parameters():
        if parameter.dim() == 2:
            # FP16 values, which a native decoder stores as such.
            parameter.mul_(10).copy_(parameter.half())
    return prior


def next_codes(decoder: Decoder) -> torch.Tensor:
    """The code that the decoder draws at each of POSITIONS after the same given ones, [positions, B]."""
    given = torch.randint(SIZES.codebook_size, (BATCH, SIZES.context_len), generator=torch.Generator().manual_seed(1))
    found = []
    for pos in POSITIONS:
        codes = given.clone()
        decoder.prefill(WindowTask(codes, pos, torch.arange(BATCH), 1, SIZES.level, 0, LevelSampling()))
        decoder.run(pos, pos + 1)
        found.append(codes[:, pos])
    return torch.stack(found)


@lru_cache(maxsize=8)
def check(name: str) -> None:
    """Once in a process, on the CPU; on a GPU the tests come first (gpu.py).

    Raises:
        RuntimeError: the decoder's codes are not the eager one's.
    """
    device, dtype = torch.device("cpu"), torch.float32
    prior = small_prior()
    theirs, ours = (next_codes(choose_backend(n, device, dtype).build(prior, BATCH)) for n in ("eager", name))
    agree = (theirs == ours).float().mean().item()
    if agree < (INT8 if name.endswith("int8") else EXACT):
        raise RuntimeError(f"{agree:.0%} of the codes of {name} are the eager decoder's: no times are reported")
