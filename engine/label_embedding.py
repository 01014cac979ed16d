"""What labels and lyrics become before a prior sees them (Dhariwal et al. 2020, sections 4.2 and 4.4)."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import reference
from .config import LabelConfig, PriorConfig
from .labels import LevelLabels
from .transformer import LayerNorm, Projection, TransformerLayer


class Conditions(NamedTuple):
    """What labels give a window, the same for all items: `start` [1, 1, W] stands in for the code before the first;
    `frames` [1, context_len, W] or None is added to every position; `lyrics` [1, S, W] or None is what the encoder made
    of them; `prompt` holds what lies before the codes."""

    start: Tensor
    frames: Tensor | None = None
    lyrics: Tensor | None = None
    prompt: tuple[int, ...] = ()


class LabelEmbedding(nn.Module):
    """Artist and genres of a song, its length, and where in it a window lies."""

    def __init__(self, config: LabelConfig, width: int) -> None:
        super().__init__()
        self.config = config

        def table(size: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(size, width).normal_(std=0.01))

        self.artist, self.genre = table(config.artists), table(config.genres)
        bins = config.time_bins
        self.song_length, self.elapsed, self.progress = (table(bins) if bins else None for _ in range(3))

    def start(self, labels: LevelLabels) -> Tensor:
        """[1, 1, W]: the sum of the artist's vector and of each genre's."""
        ids = torch.tensor(labels.genres, dtype=torch.long, device=self.genre.device)
        return (self.artist[labels.artist] + self.genre[ids].sum(dim=0)).view(1, 1, -1)

    def frames(self, labels: LevelLabels, sample_rate: int, offset: int, samples: int, codes: int) -> Tensor | None:
        """[1, codes, W] for a window of `samples` audio samples that begins at `offset`: the vectors of the song's
        length, of the time since its start, and of the part of the song that is over; None where it is told no time."""
        if self.song_length is None or self.elapsed is None or self.progress is None:
            return None
        shortest, longest = self.config.min_seconds * sample_rate, self.config.max_seconds * sample_rate
        # In FP32, and in this order: a bin's edge must lie where it did in training.
        times = labels.song_samples, offset, offset + samples
        song, start, stop = (torch.tensor(n, dtype=torch.float32, device="cpu") for n in times)
        steps = torch.arange(codes, dtype=torch.float32, device="cpu") / codes

        def between(first: Tensor, last: Tensor) -> Tensor:
            return first + (last - first) * steps

        over = (stop / song).clamp(max=1.0)
        vectors = (
            (self.song_length, (song - shortest) / (longest - shortest)),
            (self.elapsed, between(start, stop.clamp(max=longest)) / longest),
            (self.progress, between(start / song, over)),
        )
        found = torch.zeros(1, dtype=self.artist.dtype, device=self.artist.device)
        for table, place in vectors:
            bins = (self.config.time_bins * place).floor().long().clamp(0, self.config.time_bins - 1)
            found = found + F.embedding(bins.to(table.device), table)
        return found.unsqueeze(0)


class LyricEncoder(nn.Module):
    """Characters [1, S] -> what layers of pattern CROSS attend to [1, S, W]: a causal transformer without a head."""

    def __init__(self, config: PriorConfig, width: int) -> None:
        super().__init__()
        self.token_embedding = nn.Parameter(torch.empty(config.codebook_size, config.width).normal_(std=0.02))
        self.pos_embedding = nn.Parameter(torch.empty(config.context_len, config.width).normal_(std=0.01))
        self.start_token = nn.Parameter(torch.empty(1, config.width).normal_(std=0.01))
        self.layers = nn.ModuleList(TransformerLayer(config, pattern) for pattern in config.layer_patterns)
        self.proj = Projection(config.width, width)
        self.ln = LayerNorm(width)

    def forward(self, characters: Tensor) -> Tensor:
        # As in a prior, each position takes in what comes before it.
        x = F.embedding(characters[:, :-1], self.token_embedding)
        x = torch.cat([self.start_token.expand(len(x), 1, -1), x], dim=1) + self.pos_embedding
        for layer in cast("list[TransformerLayer]", self.layers):
            x = layer(x, attention=reference.prefill_attention)
        return self.ln(self.proj(x))
