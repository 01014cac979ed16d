"""A prior: the sparse transformer over one level's codes, with its upper-level conditioner and what it is told of a
song (Dhariwal et al. 2020, section 4; Fast Jukebox's top level has no condition).

Position t takes the embedding of code t - 1 (t = 0: a learned start token, or `start_cond`), the position embedding
and the frame condition at t; it yields the logits of code t. The frame condition is added once more after the
transformer, and the head is the token embedding; not so in models with a head of their own. Where lyrics lie in the
window before the codes, a character stands there as `codebook_size` and its number.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import reference
from .config import ConditionerConfig, PriorConfig
from .convolution import Upsampler, repeatable
from .kv_cache import KVCache
from .label_embedding import Conditions, LabelEmbedding, LyricEncoder
from .labels import LevelLabels, window_lyrics
from .patterns import Pattern
from .threads import one_thread
from .transformer import LayerNorm, PrefillAttention, TransformerLayer

# On a CPU logits are computed for so many rows at least: with fewer, a row's rounding depends on how many there are.
FEWEST_LOGITS = 16


class Conditioner(nn.Module):
    """Upper-level codes [B, T / ratio] -> frame condition [B, T, W], for the codes of one window."""

    def __init__(self, config: ConditionerConfig, codebook_size: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(codebook_size, width).normal_(std=0.02))
        self.upsampler = Upsampler(
            width,
            config.width,
            width,
            config.stages,
            config.stride,
            depth=config.depth,
            conv_ratio=config.conv_ratio,
            growth=config.dilation_growth,
            cycle=config.dilation_cycle,
            scale_residual=config.scale_residual,
        )
        self.ln = LayerNorm(width)

    def forward(self, upper_codes: Tensor) -> Tensor:
        x = F.embedding(upper_codes, self.embedding)
        return self.ln(self.upsampler(x.transpose(1, 2)).transpose(1, 2))


class LyricCache(Protocol):
    """What keeps the keys and values of lyrics for a layer."""

    def fill(self, kv: Tensor) -> None:
        """Take keys and values [2, 1, S, H, D], for all items."""
        ...


class Prior(nn.Module):
    """Stateless. `forward` for training; `condition`, `prefill` and `decode_step` for sampling."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Parameter(torch.empty(config.vocabulary, config.width).normal_(std=0.02))
        self.pos_embedding = nn.Parameter(torch.empty(config.context_len, config.width).normal_(std=0.01))
        # Labels begin a window instead.
        self.start_token = None if config.labels else nn.Parameter(torch.empty(1, config.width).normal_(std=0.01))
        self.own_head: nn.Parameter | None = None
        if config.separate_head:
            self.own_head = nn.Parameter(torch.empty(config.codebook_size, config.width).normal_(std=0.02))
        self.layers = nn.ModuleList(TransformerLayer(config, pattern) for pattern in config.layer_patterns)
        self.conditioner: Conditioner | None = None
        if config.conditioner:
            self.conditioner = Conditioner(config.conditioner, config.codebook_size, config.width)
        self.labels = LabelEmbedding(config.labels, config.width) if config.labels else None
        encoder = config.lyrics.encoder if config.lyrics else None
        self.lyric_encoder = LyricEncoder(encoder, config.width) if encoder else None

    @property
    def head(self) -> Tensor:
        """[codebook_size, W]: what hidden states are multiplied with, each row a code's."""
        return self.token_embedding[: self.config.codebook_size] if self.own_head is None else self.own_head

    @property
    def dtype(self) -> torch.dtype:
        return self.token_embedding.dtype

    @property
    def device(self) -> torch.device:
        return self.token_embedding.device

    def condition(self, upper_codes: Tensor) -> Tensor:
        """Frame condition [B, context_len, W] from the upper codes [B, context_len / ratio] of a window, item by item,
        so that an item's condition does not depend on its batch."""
        if self.conditioner is None:
            raise ValueError(f"the level {self.config.level} prior has no conditioner")
        with repeatable(upper_codes.device):
            return torch.cat([self.conditioner(item) for item in torch.split(upper_codes, 1)]).to(self.dtype)

    @torch.inference_mode()
    def label_conditions(self, labels: LevelLabels, sample_rate: int, offset: int, samples: int) -> Conditions:
        """What `labels` give a window of `samples` audio samples that begins `offset` samples into the song, in the
        dtype of their vectors."""
        if self.labels is None:
            raise ValueError(f"the level {self.config.level} prior takes no labels")
        config = self.config
        with repeatable(self.device), one_thread() if self.device.type == "cpu" else nullcontext():
            start = self.labels.start(labels)
            frames = self.labels.frames(labels, sample_rate, offset, samples, config.window_len)
            if frames is not None:
                # Lyrics have no time.
                frames = F.pad(frames, (0, 0, config.lyric_len, 0))
            if config.lyrics is None:
                return Conditions(start, frames)
            characters = window_lyrics(labels, config, offset, samples)
            if self.lyric_encoder is None:
                return Conditions(start, frames, None, tuple(config.codebook_size + c for c in characters))
            return Conditions(start, frames, self.lyric_encoder(torch.tensor([characters], device=self.device)))

    def forward(
        self,
        codes: Tensor,
        frame_cond: Tensor | None = None,
        start_cond: Tensor | None = None,
        attention: PrefillAttention = reference.prefill_attention,
        lyrics: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, T, V] of every code of `codes` [B, T] (int64), each given those before it.

        frame_cond: [B, T, W], start_cond: [B, 1, W]; zeros and the start token where None.
        attention: the operation that all layers use.
        lyrics: [B, S, W], what the encoder made of them, where there is one.
        """
        x = self.embed(codes[:, :-1], 0, frame_cond, start_cond)
        for layer in self.layers:
            x = layer(x, attention=attention, lyrics=lyrics)
        return self.logits(x, frame_cond)

    def read_lyrics(self, lyrics: Tensor | None, caches: Sequence[LyricCache]) -> None:
        """Give each layer's cache that wants them the keys and values of what the encoder made of the lyrics [1, S, W],
        for all items."""
        for layer, cache in zip(cast("list[TransformerLayer]", self.layers), caches, strict=True):
            if layer.pattern is Pattern.CROSS:
                if lyrics is None:
                    raise ValueError(f"the level {self.config.level} prior needs what its encoder makes of lyrics")
                cache.fill(layer.read_lyrics(lyrics))

    def prefill(
        self,
        codes: Tensor,
        cache: KVCache,
        start: int = 0,
        frame_cond: Tensor | None = None,
        start_cond: Tensor | None = None,
        attention: PrefillAttention = reference.prefill_attention,
    ) -> Tensor:
        """Put positions start ... start + T - 1 into the cache and return their hidden states [B, T, W].

        codes: [B, T - 1] if `start` is 0, else [B, T]: the codes that these positions take in, each one position late.
        frame_cond: [B, context_len, W].
        """
        x = self.embed(codes, start, frame_cond, start_cond)
        for layer, layer_cache in zip(self.layers, cache.layers, strict=True):
            x = layer(x, layer_cache, start, attention)
        return x

    def prefill_prompt(
        self,
        codes: Tensor,
        cache: KVCache,
        frame_cond: Tensor | None = None,
        start_cond: Tensor | None = None,
        attention: PrefillAttention = reference.prefill_attention,
        start: int = 0,
    ) -> None:
        """Put a window's prompt, codes [B, n] from position 0 on, into the cache, which holds positions before `start`;
        see `prefill`.

        Item by item, so that the shapes, and with them the rounding, do not depend on the batch.
        """
        for item in range(len(codes) if codes.shape[1] > start else 0):
            one = slice(item, item + 1)
            conditions = (None if cond is None else cond[one] for cond in (frame_cond, start_cond))
            taken = codes[one, max(start - 1, 0) : -1]
            self.prefill(taken, cache.lane(item), start, *conditions, attention=attention)

    def decode_step(
        self,
        previous: Tensor | None,
        pos: int,
        cache: KVCache,
        frame_cond: Tensor | None = None,
        start_cond: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, V] of position `pos` from the codes [B] at `pos` - 1 (None at position 0)."""
        lanes = cache.layers[0].kv.shape[1]
        x = self.token_embedding[previous] if previous is not None else self.start(start_cond, lanes)
        x = x + self.pos_embedding[pos]
        cond = None if frame_cond is None else frame_cond[:, pos]
        if cond is not None:
            x = x + cond
        for layer, layer_cache in zip(cast("list[TransformerLayer]", self.layers), cache.layers, strict=True):
            x = layer.decode(x, layer_cache, pos)
        return self.logits(x, cond)

    def embed(self, codes: Tensor, start: int, frame_cond: Tensor | None, start_cond: Tensor | None) -> Tensor:
        """The transformer's input [B, T, W] for positions from `start` on; see `prefill`."""
        x = F.embedding(codes, self.token_embedding)
        if start == 0:
            x = torch.cat([self.start(start_cond, len(codes)).unsqueeze(1), x], dim=1)
        stop = start + x.shape[1]
        x = x + self.pos_embedding[start:stop]
        return x if frame_cond is None else x + frame_cond[:, start:stop]

    def logits(self, x: Tensor, cond: Tensor | None) -> Tensor:
        """Hidden states [..., W] and their frame condition -> logits [..., V], in FP32 at least."""
        if cond is not None and not self.config.separate_head:
            x = x + cond
        head = self.head
        rows = x.reshape(-1, x.shape[-1])
        count = len(rows)
        if count < FEWEST_LOGITS and x.device.type == "cpu":
            rows = F.pad(rows, (0, 0, 0, FEWEST_LOGITS - count))
        # A decode step multiplies from this side: there that holds for any number from those on.
        y = (head @ rows.T).T if x.dim() == 2 else rows @ head.T
        y = y[:count].view(*x.shape[:-1], -1)
        return y if y.dtype == torch.float64 else y.float()

    def start(self, start_cond: Tensor | None, items: int) -> Tensor:
        """[B, W]: what position 0 takes in."""
        if start_cond is not None:
            return start_cond[:, 0]
        if self.start_token is None:
            raise ValueError(f"the level {self.config.level} prior needs labels (start_cond): it has no start token")
        return self.start_token.expand(items, -1)
