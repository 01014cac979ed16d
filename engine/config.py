"""The shape of every model: frozen dataclasses and named presets.

Sizes follow the published models: the three-level VQ-VAE and the priors of Jukebox (Dhariwal et al. 2020, appendix B),
and the unconditional 6144-code top priors of Fast Jukebox (Appl. Sci. 2023, 13, 5630).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from .patterns import Pattern


@dataclass(frozen=True)
class VQVAEConfig:
    """A VQ-VAE with one encoder, codebook and decoder per level; level 0 is the finest."""

    codebook_size: int = 2048
    code_dim: int = 64
    # Stride-`strides[i]` convolutions between level i - 1 (or the audio) and level i.
    downs: tuple[int, ...] = (3, 2, 2)
    strides: tuple[int, ...] = (2, 2, 2)
    width: int = 32
    depth: int = 4
    # Per level, a factor on both width and depth.
    multipliers: tuple[int, ...] = (2, 1, 1)
    conv_ratio: float = 1.0
    dilation_growth: int = 3
    dilation_cycle: int | None = None
    reverse_decoder_dilation: bool = True
    sample_rate: int = 44100

    @property
    def levels(self) -> int:
        return len(self.downs)

    def upper_ratio(self, level: int) -> int:
        """Codes (or samples, for level 0) of the level below that one code of `level` stands for."""
        return self.strides[level] ** self.downs[level]

    def samples_per_code(self, level: int) -> int:
        """Audio samples that one code of `level` stands for: 8, 32, 128 in Jukebox."""
        product = 1
        for lower in range(level + 1):
            product *= self.upper_ratio(lower)
        return product

    def __post_init__(self) -> None:
        if not len(self.downs) == len(self.strides) == len(self.multipliers):
            raise ValueError(
                f"downs {self.downs}, strides {self.strides} and multipliers {self.multipliers} "
                "must have one entry per level"
            )
        _check_sizes(
            self, "levels", "codebook_size", "code_dim", "width", "depth", "sample_rate", "downs", "multipliers"
        )
        _check_convolutions(self, *self.strides)


@dataclass(frozen=True)
class ConditionerConfig:
    """The convolutional network that turns upper-level codes into an upsampler's frame condition."""

    width: int = 1024
    depth: int = 16
    # Transposed convolutions of this stride; stride ** stages positions come out of one upper code.
    stages: int = 2
    stride: int = 2
    conv_ratio: float = 1.0
    dilation_growth: int = 3
    dilation_cycle: int | None = 8
    # Scale each residual branch by 1 / sqrt(depth).
    scale_residual: bool = False

    @property
    def upper_ratio(self) -> int:
        return self.stride**self.stages

    def __post_init__(self) -> None:
        _check_sizes(self, "width", "depth", "stages")
        _check_convolutions(self, self.stride)


@dataclass(frozen=True)
class LabelConfig:
    """What a prior is told of a song: artist and genres, which begin each window; at the top also where in the song
    each code lies (Dhariwal et al. 2020, section 4.2)."""

    artists: int
    genres: int
    # Genres that one song may have.
    genre_slots: int
    # Each of the song's length, the time since its start and the part of it that is over falls into one of so many
    # bins; 0: the prior is told none of them.
    time_bins: int = 0
    # Songs last from the first to less than the second.
    min_seconds: float = 60.0
    max_seconds: float = 600.0

    def __post_init__(self) -> None:
        _check_sizes(self, "artists", "genres", "genre_slots")
        if self.time_bins < 0 or not 0 <= self.min_seconds < self.max_seconds:
            songs = f"songs of {self.min_seconds} to {self.max_seconds} s"
            raise ValueError(f"time_bins {self.time_bins} and {songs}: 0 or more, and a range")


@dataclass(frozen=True)
class LyricConfig:
    """The `length` characters of the lyrics that belong to a window, of an alphabet of `vocabulary`.

    They lie in one sequence with the codes and before them; or an `encoder` of their own reads them, a transformer
    whose output the layers of pattern CROSS attend to.
    """

    vocabulary: int
    length: int
    encoder: PriorConfig | None = None

    def __post_init__(self) -> None:
        _check_sizes(self, "vocabulary", "length")
        encoder = self.encoder
        if encoder is None:
            return
        if (encoder.context_len, encoder.codebook_size) != (self.length, self.vocabulary):
            raise ValueError(
                f"the encoder reads {encoder.context_len} characters of {encoder.codebook_size}, not {self.length} of "
                f"{self.vocabulary}"
            )
        if encoder.conditioner or encoder.labels or encoder.lyrics or encoder.separate_head:
            raise ValueError("the encoder of lyrics reads nothing but lyrics")


@dataclass(frozen=True)
class PriorConfig:
    """A sparse transformer over the codes of one level."""

    level: int
    width: int
    depth: int
    heads: int
    context_len: int
    num_rows: int
    codebook_size: int = 2048
    # Repeated over the layers.
    pattern_cycle: tuple[Pattern, ...] = (Pattern.ROW, Pattern.COLUMN, Pattern.PREVIOUS_ROW)
    attn_ratio: float = 0.25
    mlp_ratio: float = 1.0
    # Scale the residual branches of each layer by 1 / depth.
    scale_residual: bool = False
    conditioner: ConditionerConfig | None = None
    labels: LabelConfig | None = None
    lyrics: LyricConfig | None = None
    # The output head is not the token embedding, and the frame condition is not added again before it.
    separate_head: bool = False

    @property
    def row_len(self) -> int:
        return self.context_len // self.num_rows

    @property
    def lyric_len(self) -> int:
        """Positions at the start of a window that hold lyrics."""
        return self.lyrics.length if self.lyrics and not self.lyrics.encoder else 0

    @property
    def window_len(self) -> int:
        """Codes of a window."""
        return self.context_len - self.lyric_len

    @property
    def lyric_reach(self) -> int:
        """Positions that pattern LYRICS sees: the lyrics and, in the published model, the first codes."""
        return (self.lyric_len // self.num_rows + 1) * self.num_rows

    @property
    def vocabulary(self) -> int:
        """What a position may hold: a code or, where lyrics come before the codes, `codebook_size` and a character."""
        return self.codebook_size + (self.lyrics.vocabulary if self.lyrics and self.lyric_len else 0)

    @property
    def attn_width(self) -> int:
        return int(self.attn_ratio * self.width)

    @property
    def head_dim(self) -> int:
        return self.attn_width // self.heads

    @property
    def mlp_width(self) -> int:
        return int(self.mlp_ratio * self.width)

    @property
    def res_scale(self) -> float:
        return 1.0 / self.depth if self.scale_residual else 1.0

    @property
    def layer_patterns(self) -> tuple[Pattern, ...]:
        return tuple(self.pattern_cycle[layer % len(self.pattern_cycle)] for layer in range(self.depth))

    def __post_init__(self) -> None:
        _check_sizes(
            self, "width", "depth", "heads", "context_len", "num_rows", "codebook_size", "attn_width", "mlp_width"
        )
        if self.level < 0 or not self.pattern_cycle:
            raise ValueError(f"level {self.level} with pattern_cycle {self.pattern_cycle}: 0 or more, and at least one")
        if self.context_len % self.num_rows:
            raise ValueError(f"context_len {self.context_len} is not a multiple of num_rows {self.num_rows}")
        if self.attn_width % self.heads:
            raise ValueError(f"attention width {self.attn_width} is not a multiple of heads {self.heads}")
        if self.window_len < 1:
            raise ValueError(f"context_len {self.context_len} leaves no codes beside {self.lyric_len} lyrics")
        if self.lyrics and not self.labels:
            raise ValueError("lyrics need labels: the song's length says which of them belong to a window")
        encoder = self.lyrics and self.lyrics.encoder
        if self.conditioner and (self.lyric_len or (self.labels and self.labels.time_bins)):
            raise ValueError("a prior with a conditioner is told no time, and has no lyrics before its codes")
        for pattern, there in ((Pattern.LYRICS, self.lyric_len), (Pattern.CROSS, encoder)):
            if pattern in self.pattern_cycle and not there:
                raise ValueError(f"pattern {pattern.value} without such lyrics")
        if self.conditioner and self.window_len % self.conditioner.upper_ratio:
            raise ValueError(
                f"a window of {self.window_len} codes is not a multiple of the {self.conditioner.upper_ratio} codes "
                "that one upper code stands for"
            )


@dataclass(frozen=True)
class JukeboxConfig:
    """A whole stack: the VQ-VAE and one prior per level, `priors[k].level == k`."""

    vqvae: VQVAEConfig
    priors: tuple[PriorConfig, ...]

    def __post_init__(self) -> None:
        for level, prior in enumerate(self.priors):
            if prior.level != level:
                raise ValueError(f"priors[{level}] is a prior of level {prior.level}")
            if prior.codebook_size != self.vqvae.codebook_size:
                raise ValueError(
                    f"the level {level} prior has {prior.codebook_size} codes, the VQ-VAE {self.vqvae.codebook_size}"
                )
            top = level == self.vqvae.levels - 1
            if top == bool(prior.conditioner):
                raise ValueError(f"level {level} of {self.vqvae.levels}: only levels below the top have a conditioner")
            if prior.conditioner and prior.conditioner.upper_ratio != self.vqvae.upper_ratio(level + 1):
                raise ValueError(
                    f"the level {level} conditioner upsamples {prior.conditioner.upper_ratio}x, the VQ-VAE's level "
                    f"{level + 1} has {self.vqvae.upper_ratio(level + 1)}x fewer codes"
                )


def _check_sizes(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if min(value) < 1 if isinstance(value, tuple) else value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")


def _check_convolutions(config: VQVAEConfig | ConditionerConfig, *strides: int) -> None:
    _check_sizes(config, "dilation_growth", *(["dilation_cycle"] if config.dilation_cycle is not None else []))
    if not 1 <= config.conv_ratio * config.width < math.inf:
        raise ValueError(f"conv_ratio {config.conv_ratio} leaves no channels of {config.width}")
    # The convolutions of 2 * stride taps are padded by half a stride.
    if any(stride < 2 or stride % 2 for stride in strides):
        raise ValueError(f"strides must be even, not {strides}")


_UPSAMPLER = PriorConfig(
    level=0, width=1920, depth=72, heads=1, context_len=8192, num_rows=128, conditioner=ConditionerConfig()
)
_PAPER_TOP = PriorConfig(level=2, width=2048, depth=72, heads=2, context_len=6144, num_rows=64)
_UPSAMPLER_1 = dataclasses.replace(_UPSAMPLER, level=1, conditioner=ConditionerConfig(scale_residual=True))

_UPSAMPLERS = {"upsampler-0": _UPSAMPLER, "upsampler-1": _UPSAMPLER_1}
FACTORED = (Pattern.ROW, Pattern.COLUMN, Pattern.PREVIOUS_ROW)
_LABELS = LabelConfig(artists=4111, genres=120, genre_slots=5)
_TOP_5B = PriorConfig(
    level=2,
    width=4800,
    depth=72,
    heads=8,
    context_len=8192,
    num_rows=128,
    labels=dataclasses.replace(_LABELS, time_bins=128),
    separate_head=True,
)
_TOP_5B_LYRICS = dataclasses.replace(
    _TOP_5B,
    depth=79,
    pattern_cycle=3 * FACTORED + 7 * (3 * FACTORED + (Pattern.CROSS,)),
    labels=dataclasses.replace(_LABELS, time_bins=128, min_seconds=23.8),
    lyrics=LyricConfig(
        80, 512, PriorConfig(2, width=1280, depth=18, heads=4, context_len=512, num_rows=32, codebook_size=80)
    ),
)
# One layer in sixteen attends to the lyrics, two times of three, or to everything.
LYRICS_IN_SEQUENCE = tuple(
    (Pattern.LYRICS, Pattern.LYRICS, Pattern.DENSE)[layer % 3] if layer % 16 == 15 else FACTORED[layer % 3]
    for layer in range(48)
)
_TOP_1B_LYRICS = PriorConfig(
    level=2,
    width=2048,
    depth=72,
    heads=2,
    context_len=384 + 6144,
    num_rows=64,
    pattern_cycle=LYRICS_IN_SEQUENCE,
    labels=LabelConfig(artists=7898, genres=604, genre_slots=1, time_bins=64, min_seconds=17.84),
    lyrics=LyricConfig(79, 384),
)

PRESETS: dict[str, VQVAEConfig | PriorConfig] = {
    "vqvae": VQVAEConfig(),
    **{
        f"{name}-{depth}": dataclasses.replace(prior, depth=depth)
        for name, prior in (*_UPSAMPLERS.items(), ("top", _PAPER_TOP))
        for depth in (72, 24, 18)
    },
    **{f"{name}-5b": dataclasses.replace(prior, labels=_LABELS) for name, prior in _UPSAMPLERS.items()},
    "top-5b": _TOP_5B,
    "top-5b-lyrics": _TOP_5B_LYRICS,
    "top-1b-lyrics": _TOP_1B_LYRICS,
}
