"""Sampling in the original's manner, in plain PyTorch: the cache grows by `torch.cat` in every step, rows that no later
position sees are cut off, keys and values are taken by indexing, and each operation is a call from Python.

A peer to measure against, on the weights of a `Prior` in its dtype. It draws the same noise as the engine, in blocks as
the eager decoder does, and therefore the same codes. The semantics are those of Jukebox (Dhariwal et al. 2020, section
4.1): position t lies in row t // row_len and column t % row_len; a layer sees the row or the column up to t, all of the
row before, or everything up to t.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.patterns import Pattern
from ..engine.prior import Prior
from ..engine.transformer import TransformerLayer
from ..kernels import philox

NOISE_BLOCK = 64


class GrowingCache:
    """Samples codes of `prior`, which has no conditioner. Per layer it keeps the keys and the values of the positions
    from `first` on, [B, n, attention width] each: of the row, of it and the one before, or of all so far."""

    def __init__(self, prior: Prior, temperature: float, seed: int) -> None:
        if prior.conditioner is not None:
            raise ValueError("the growing cache takes priors without a conditioner")
        self.prior, self.config = prior, prior.config
        self.temperature, self.seed = temperature, seed
        self.layers = cast("list[TransformerLayer]", list(prior.layers))

    @torch.inference_mode()
    def prefill(self, codes: Tensor, prompt_len: int) -> None:
        """Take the codes [B, context_len], which `run` goes on from `prompt_len` on, and compute the prompt's keys and
        values at once."""
        self.codes, self.first = codes, [0] * len(self.layers)
        empty = torch.empty(len(codes), 0, self.config.attn_width, device=codes.device, dtype=self.prior.dtype)
        self.keys, self.values = [empty] * len(self.layers), [empty] * len(self.layers)
        if prompt_len:
            start = self.prior.start(None, len(codes)).unsqueeze(1)
            x = torch.cat([start, self.prior.token_embedding[codes[:, : prompt_len - 1]]], dim=1)
            self._transform(x + self.prior.pos_embedding[:prompt_len])

    @torch.inference_mode()
    def logits(self, pos: int) -> Tensor:
        """Logits [B, V] of position `pos`, which must be the next one: it joins the cache."""
        items = len(self.codes)
        x = self.prior.token_embedding[self.codes[:, pos - 1]] if pos else self.prior.start(None, items)
        x = self._transform((x + self.prior.pos_embedding[pos])[:, None])
        return x[:, 0] @ self.prior.token_embedding.T

    @torch.inference_mode()
    def run(self, start: int, stop: int) -> None:
        """Write codes start ... stop - 1."""
        codes = self.codes
        items = torch.arange(len(codes), device=codes.device)
        noise, block_start = torch.empty(0), -NOISE_BLOCK
        for pos in range(start, stop):
            if pos - block_start >= NOISE_BLOCK:
                block_start = pos
                positions = torch.arange(pos, min(pos + NOISE_BLOCK, stop), device=codes.device)
                noise = philox.gumbel_noise(self.seed, items, self.config.level, positions, self.config.codebook_size)
            logits = self.logits(pos).float() / self.temperature
            codes[:, pos] = torch.argmax(logits + noise[:, pos - block_start], dim=-1)

    def _transform(self, x: Tensor) -> Tensor:
        """The layers on the next positions' x [B, T, W], which join the cache. T is 1, or the cache is empty."""
        for index, layer in enumerate(self.layers):
            y = F.layer_norm(x, (x.shape[-1],), layer.ln_0.weight, layer.ln_0.bias)
            q, k, v = (y @ layer.qkv.weight + layer.qkv.bias).chunk(3, dim=-1)
            self.keys[index] = torch.cat([self.keys[index], k], dim=1)
            self.values[index] = torch.cat([self.values[index], v], dim=1)
            a = self._attend_next(q, index) if x.shape[1] == 1 else self._attend_prompt(q, k, v, layer.pattern)
            self._cut(index)
            h = x + (a @ layer.proj.weight + layer.proj.bias)
            y = F.layer_norm(h, (h.shape[-1],), layer.ln_1.weight, layer.ln_1.bias)
            y = y @ layer.up.weight + layer.up.bias
            y = y * torch.sigmoid(1.702 * y)
            y = y @ layer.down.weight + layer.down.bias
            # x + scale * (attention + MLP), with attention = h - x.
            x = h + y if layer.res_scale == 1.0 else x + layer.res_scale * (h - x + y)
        return x

    def _cut(self, index: int) -> None:
        """Forget what the layer's next position and all later ones do not see."""
        pattern, row_len = self.layers[index].pattern, self.config.row_len
        if pattern not in (Pattern.ROW, Pattern.PREVIOUS_ROW):
            return
        row = (self.first[index] + self.keys[index].shape[1]) // row_len
        needed = max(0, row - (pattern is Pattern.PREVIOUS_ROW)) * row_len
        if needed > self.first[index]:
            self.keys[index] = self.keys[index][:, needed - self.first[index] :]
            self.values[index] = self.values[index][:, needed - self.first[index] :]
            self.first[index] = needed

    def _attend_next(self, q: Tensor, index: int) -> Tensor:
        """Attention of the last position, q [B, 1, A], over what it sees of the layer's keys and values."""
        keys, values, first = self.keys[index], self.values[index], self.first[index]
        pattern, row_len = self.layers[index].pattern, self.config.row_len
        pos = first + keys.shape[1] - 1
        row, column = pos // row_len, pos % row_len
        if pattern is Pattern.ROW:
            seen = slice(row * row_len - first, None)
        elif pattern is Pattern.COLUMN:
            seen = slice(column, pos + 1, row_len)
        elif pattern is Pattern.PREVIOUS_ROW:
            if row == 0:
                return torch.zeros_like(q)
            seen = slice((row - 1) * row_len - first, row * row_len - first)
        else:
            seen = slice(None)
        q, k, v = self._heads(q), self._heads(keys[:, seen]), self._heads(values[:, seen])
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.config.head_dim)
        a = torch.softmax(scores, dim=-1) @ v
        return a.transpose(1, 2).flatten(2)

    def _attend_prompt(self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
        """Attention among the positions of a prompt, [B, T, A] each: every row or column is an item of its own."""
        batch, length, _ = q.shape
        row_len = self.config.row_len
        if pattern is Pattern.DENSE:
            a = F.scaled_dot_product_attention(self._heads(q), self._heads(k), self._heads(v), is_causal=True)
            return a.transpose(1, 2).flatten(2)
        # [B, rows, row_len, A]; what fills the last row is seen by itself only.
        q, k, v = (F.pad(t, (0, 0, 0, -length % row_len)).unflatten(1, (-1, row_len)) for t in (q, k, v))
        if pattern is Pattern.COLUMN:
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        elif pattern is Pattern.PREVIOUS_ROW:
            # The row before the first is all zeros, and so is what it gives.
            k, v = (torch.cat([torch.zeros_like(t[:, :1]), t[:, :-1]], dim=1) for t in (k, v))
        q, k, v = (self._heads(t.flatten(0, 1)) for t in (q, k, v))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=pattern is not Pattern.PREVIOUS_ROW)
        a = a.transpose(1, 2).flatten(2).unflatten(0, (batch, -1))
        if pattern is Pattern.COLUMN:
            a = a.transpose(1, 2)
        return a.flatten(1, 2)[:, :length]

    def _heads(self, x: Tensor) -> Tensor:
        """[N, n, A] -> [N, H, n, D]"""
        return x.unflatten(-1, (self.config.heads, -1)).transpose(1, 2)
