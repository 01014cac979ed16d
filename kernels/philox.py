"""Philox4x32-10, the counter-based random numbers of every backend (Salmon et al., SC 2011), and Gumbel noise from it.

The noise for one code depends on (seed, item, level, position) and on nothing else, so no order of work, batch size or
interruption can change what is drawn. Code v takes word v % 4 of block v // 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Ten rounds on four counter words; words are int64 tensors that hold 32-bit values and broadcast."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = key
    for _ in range(10):
        # The products wrap at 64 bits, which leaves both 32-bit halves right.
        product_0, product_2 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = (product_2 >> 32 & _MASK) ^ c1 ^ k0
        c2 = (product_0 >> 32 & _MASK) ^ c3 ^ k1
        c1, c3 = product_2 & _MASK, product_0 & _MASK
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def random_bits(seed: int, items: Tensor, level: int, positions: Tensor, count: int) -> Tensor:
    """[items, positions, count] int64 tensor of 32-bit words; `seed` has 64 bits, items and positions 32 each."""
    blocks = torch.arange((count + 3) // 4, device=items.device)
    counter = (
        items.long()[:, None, None],
        torch.tensor(level, device=items.device),
        positions.long()[None, :, None],
        blocks[None, None, :],
    )
    words = philox4x32(counter, (seed & _MASK, seed >> 32 & _MASK))
    return torch.stack(words, dim=-1).flatten(2)[..., :count]


def gumbel_noise(seed: int, items: Tensor, level: int, positions: Tensor, count: int) -> Tensor:
    """[items, positions, count] FP32 standard Gumbel noise.

    The upper 23 bits b of each word become (b + 1/2) / 2^23, which FP32 holds exactly and which is never 0 or 1.
    """
    bits = random_bits(seed, items, level, positions, count) >> 9
    uniform = (bits.float() + 0.5) * 2.0**-23
    return -(-uniform.log()).log()
