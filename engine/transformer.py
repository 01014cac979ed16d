"""One layer of the sparse transformer: factored attention and MLP around the residual stream
(Dhariwal et al. 2020, section 4.1). The residual is h = x + attn(ln_0(x)); out = x + res_scale * (attn + mlp(ln_1(h))).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from ..kernels import reference
from .config import PriorConfig
from .kv_cache import LayerCache
from .patterns import Pattern

# reference.prefill_attention, or another operation of its signature.
PrefillAttention: TypeAlias = Callable[[Tensor, Tensor, Tensor, str, int, int, int], Tensor]


class Projection(nn.Module):
    """x @ weight + bias with `weight` [in, out], which may be stored in a narrower dtype than it is used in."""

    def __init__(self, in_width: int, out_width: int, std: float = 0.02) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_width, out_width).normal_(std=std))
        self.bias = nn.Parameter(torch.zeros(out_width))

    def forward(self, x: Tensor) -> Tensor:
        return reference.linear(x, self.weight.to(self.bias.dtype), self.bias)


class LayerNorm(nn.Module):
    """Over the last axis, statistics in FP32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return reference.layer_norm(x, self.weight, self.bias)


class TransformerLayer(nn.Module):
    """Stateless: keys and values live in the LayerCache that is passed in.

    `qkv` projects a position to its query, keys and values; of pattern CROSS to its query alone: keys and values come
    from the lyrics, by `lyric_kv`.
    """

    def __init__(self, config: PriorConfig, pattern: Pattern) -> None:
        super().__init__()
        self.pattern, self.row_len, self.heads = pattern, config.row_len, config.heads
        self.res_scale, self.reach = config.res_scale, config.lyric_reach
        self.ln_0 = LayerNorm(config.width)
        cross = pattern is Pattern.CROSS
        self.qkv = Projection(config.width, (1 if cross else 3) * config.attn_width)
        self.lyric_kv = Projection(config.width, 2 * config.attn_width) if cross else None
        self.proj = Projection(config.attn_width, config.width)
        self.ln_1 = LayerNorm(config.width)
        self.up = Projection(config.width, config.mlp_width)
        self.down = Projection(config.mlp_width, config.width)

    def forward(
        self,
        x: Tensor,
        cache: LayerCache | None = None,
        start: int = 0,
        attention: PrefillAttention = reference.prefill_attention,
        lyrics: Tensor | None = None,
    ) -> Tensor:
        """x [B, T, W] of positions start ... start + T - 1 -> the same shape. With a cache, its keys and values of
        earlier positions are seen and those of the chunk are kept; without one, `start` must be 0. lyrics: what the
        encoder made of them [B, S, W], for CROSS without a cache."""
        # [B, T, 3, H, D], of CROSS [B, T, 1, H, D]
        qkv = self.qkv(self.ln_0(x)).unflatten(-1, (3 if self.lyric_kv is None else 1, self.heads, -1))
        if self.pattern in (Pattern.LYRICS, Pattern.CROSS):
            return self._residual(x, self.proj(self._attend_lyrics(qkv, cache, start, lyrics).flatten(2)))
        q, k, v = qkv.unbind(2)
        key_start = 0
        if cache:
            key_start = cache.first_seen(start)
            past = cache.past(start)
            cache.store(qkv[:, :, 1:].permute(2, 0, 1, 3, 4), start)
            k, v = torch.cat([past[0], k], dim=1), torch.cat([past[1], v], dim=1)
        a = attention(q, k, v, self.pattern.value, self.row_len, start, key_start)
        return self._residual(x, self.proj(a.flatten(2)))

    def decode(self, x: Tensor, cache: LayerCache, pos: int) -> Tensor:
        """x [B, W] at position `pos` -> [B, W]; everything before `pos` is in the cache, and `pos` is added to it."""
        # [B, 3, H, 1, D], of CROSS [B, 1, H, 1, D]
        qkv = self.qkv(self.ln_0(x)).view(x.shape[0], -1, self.heads, 1, cache.kv.shape[-1])
        own = cache.slot(pos)
        if own is not None:
            cache.by_slot[own].copy_(qkv.narrow(1, 1, 2))
        first, count = cache.visible(pos)
        if count:
            keys, values = cache.keys.narrow(2, first, count), cache.values.narrow(2, first, count)
            a = self.proj(reference.decode_attention(qkv.select(1, 0), keys, values).flatten(1))
        else:
            # Attention over nothing is zero; the projection leaves its bias.
            a = self.proj.bias
        return self._residual(x, a)

    def read_lyrics(self, lyrics: Tensor) -> Tensor:
        """Keys and values [2, B, S, H, D] of what the encoder made of the lyrics [B, S, W], in its dtype, for CROSS."""
        assert self.lyric_kv is not None
        weight, bias = self.lyric_kv.weight.to(lyrics.dtype), self.lyric_kv.bias.to(lyrics.dtype)
        return reference.linear(lyrics, weight, bias).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 1, 3, 4)

    def _attend_lyrics(self, qkv: Tensor, cache: LayerCache | None, start: int, lyrics: Tensor | None) -> Tensor:
        """[B, T, H, D] of LYRICS or CROSS. One layer in ten or more has them, and they see few keys: they are left to
        PyTorch everywhere."""
        q = qkv[:, :, 0]
        if self.lyric_kv is not None:
            if cache is None and lyrics is None:
                raise ValueError("a layer that attends to lyrics needs them, or a cache that has read them")
            k, v = self.read_lyrics(cast("Tensor", lyrics)) if cache is None else cache.kv.transpose(2, 3)
            return reference.lyric_attention(q, k, v)
        kv = qkv[:, :, 1:].permute(2, 0, 1, 3, 4)
        if cache is None:
            k, v = kv[:, :, : self.reach]
        else:
            cache.store(kv, start)
            k, v = cache.past(min(start + q.shape[1], self.reach))
        return reference.lyric_attention(q, k, v, start)

    def _residual(self, x: Tensor, a: Tensor) -> Tensor:
        h = x + a
        m = self.down(reference.quick_gelu(self.up(self.ln_1(h))))
        return h + m if self.res_scale == 1.0 else x + self.res_scale * (a + m)
