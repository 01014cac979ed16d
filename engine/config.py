"""The shape of every model: frozen dataclasses, their JSON form, and named presets.

Sizes follow the published models: the three-level VQ-VAE and the 72-layer priors of Jukebox (Dhariwal et al. 2020,
appendix B), and the unconditional 6144-code top priors of Fast Jukebox (Appl. Sci. 2023, 13, 5630).
"""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass
from typing import Any, TypeVar

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

    @property
    def row_len(self) -> int:
        return self.context_len // self.num_rows

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
        if self.conditioner and self.context_len % self.conditioner.upper_ratio:
            raise ValueError(
                f"context_len {self.context_len} is not a multiple of the {self.conditioner.upper_ratio} codes "
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


Config = TypeVar("Config", bound=Any)


def to_json(config: Any) -> dict[str, Any]:
    """A config as plain dicts, lists, numbers and strings."""
    return dataclasses.asdict(config)


def from_json(kind: type[Config], values: dict[str, Any]) -> Config:
    """The config that `to_json` wrote. Raises ValueError on unknown or missing keys."""
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {', '.join(unknown)}; it has {', '.join(hints)}")
    found = dict[str, Any]()
    for name, value in values.items():
        try:
            found[name] = _parse(hints[name], value)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{kind.__name__}, {name}: {error}") from None
    try:
        return kind(**found)
    except TypeError as error:
        raise ValueError(f"{kind.__name__}: {error}") from None


def _parse(hint: Any, value: Any) -> Any:
    arguments = typing.get_args(hint)
    if type(None) in arguments:
        return None if value is None else _parse(arguments[0], value)
    if typing.get_origin(hint) is tuple:
        return tuple(_parse(arguments[0], item) for item in value)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ValueError(f"{value!r} holds no fields")
        return from_json(typing.cast(type, hint), typing.cast("dict[str, Any]", value))
    if hint in (int, bool, float):
        fits = isinstance(value, (int, float) if hint is float else hint) and isinstance(value, bool) == (hint is bool)
        if not fits or not math.isfinite(value):
            raise ValueError(f"{value!r} is no {hint.__name__}")
    return hint(value)


_UPSAMPLER = PriorConfig(
    level=0, width=1920, depth=72, heads=1, context_len=8192, num_rows=128, conditioner=ConditionerConfig()
)
_PAPER_TOP = PriorConfig(level=2, width=2048, depth=72, heads=2, context_len=6144, num_rows=64)
_UPSAMPLER_1 = dataclasses.replace(_UPSAMPLER, level=1, conditioner=ConditionerConfig(scale_residual=True))

PRESETS: dict[str, VQVAEConfig | PriorConfig] = {
    "vqvae": VQVAEConfig(),
    **{
        f"{name}-{depth}": dataclasses.replace(prior, depth=depth)
        for name, prior in (("upsampler-0", _UPSAMPLER), ("upsampler-1", _UPSAMPLER_1), ("top", _PAPER_TOP))
        for depth in (72, 24, 18)
    },
}
