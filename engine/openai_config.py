"""The configs of OpenAI's files: from the `hps` (the settings of the training run) in them, else from a preset.

Shapes do not show everything. In a file without `hps`, the heads, the rows, the patterns and the dilations are the
preset's, and an upsampler of level 1 looks like one of level 0.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any, TypeVar

import torch
from torch import Tensor

from .checkpoint import CheckpointError
from .config import (
    FACTORED,
    LYRICS_IN_SEQUENCE,
    PRESETS,
    ConditionerConfig,
    LabelConfig,
    LyricConfig,
    PriorConfig,
    VQVAEConfig,
)
from .openai_pickle import Model
from .patterns import Pattern

Part = TypeVar("Part", VQVAEConfig, PriorConfig)

# `attn_order` and the patterns it repeats. The others attend to summaries of rows.
_PATTERN_CYCLES = {
    0: (Pattern.DENSE,),
    1: (Pattern.ROW, Pattern.COLUMN),
    2: FACTORED,
    6: (*FACTORED, Pattern.CROSS),
    7: (*5 * FACTORED, Pattern.CROSS),
    8: (*3 * FACTORED, Pattern.CROSS),
    9: (*FACTORED, Pattern.DENSE),
    10: 3 * FACTORED + 7 * (*3 * FACTORED, Pattern.CROSS),
    11: tuple(Pattern.CROSS if p is Pattern.LYRICS else p for p in LYRICS_IN_SEQUENCE),
    12: LYRICS_IN_SEQUENCE,
}


def vqvae_config(model: Model, preset: object = None) -> tuple[VQVAEConfig, str]:
    """The config of a VQ-VAE's file, and where it is from."""
    if any(key.startswith("prior.") for key in model.tensors):
        raise CheckpointError(f"{model.path}: is a prior's file, given as the VQ-VAE")
    given = _given(model.path, preset, VQVAEConfig)
    hps = _Settings(model, "downs_t", "strides_t", "emb_width", "l_bins", "width", "depth")
    if hps.missing:
        return _without_hps(hps, given, VQVAEConfig())
    downs = hps.integers("downs_t")
    read = hps.build(
        lambda: VQVAEConfig(
            codebook_size=hps.integer("l_bins"),
            code_dim=hps.integer("emb_width"),
            downs=downs,
            strides=hps.integers("strides_t"),
            width=hps.integer("width"),
            depth=hps.integer("depth"),
            multipliers=hps.integers("hvqvae_multipliers") or (1,) * len(downs),
            conv_ratio=float(hps.get("m_conv", 1.0)),
            dilation_growth=hps.integer("dilation_growth_rate", 1),
            dilation_cycle=hps.integer("dilation_cycle", 0) or None,
            reverse_decoder_dilation=bool(hps.get("vqvae_reverse_decoder_dilation", True)),
            sample_rate=hps.integer("sr", 44100),
        )
    )
    return _agreed(model.path, read, given)


def prior_config(model: Model, level: int, vqvae: VQVAEConfig, preset: object = None) -> tuple[PriorConfig, str]:
    """The config of the file of the prior of `level`, and where it is from."""
    path, tensors = model.path, model.tensors
    if not any(key.startswith("prior.") for key in tensors):
        what = "the VQ-VAE's file" if "bottleneck.level_blocks.0.k" in tensors else "not a prior's file"
        raise CheckpointError(f"{path}: is {what}, given as the level {level} prior")
    hps = _Settings(model, "n_ctx", "prior_width", "prior_depth", "heads", "attn_order", "blocks")
    if hps.some and hps.integer("level", level) != level:
        raise CheckpointError(f"{path}: is a prior of level {hps.integer('level')} (its hps), given as level {level}")
    conditioned = any(key.startswith("conditioner_blocks.") for key in tensors)
    if level >= vqvae.levels:
        raise CheckpointError(f"{path}: is given as level {level}, the VQ-VAE has levels 0 to {vqvae.levels - 1}")
    if conditioned == (level == vqvae.levels - 1):
        kind = "an upsampler (it has conditioner_blocks)" if conditioned else "a top prior (no conditioner_blocks)"
        raise CheckpointError(
            f"{path}: is {kind}, given as level {level} of {vqvae.levels}; levels count from the finest"
        )

    given = _given(path, preset, PriorConfig)
    if given and given.level != level:
        raise CheckpointError(f"{path}: is given as level {level}, its preset is one of level {given.level}")
    depth = 1 + max(
        (int(key.split(".")[3]) for key in tensors if re.match(r"prior\.\w+\._attn_mods\.\d", key)), default=0
    )
    if hps.missing:
        families = [preset for preset in PRESETS.values() if isinstance(preset, PriorConfig) and preset.level == level]
        family = next((preset for preset in families if _kind(preset) == _kind_of(tensors, vqvae)), None)
        published = dataclasses.replace(family, depth=depth) if family else None
        config, source = _without_hps(hps, given, published)
    else:
        config, source = _agreed(path, hps.build(lambda: _prior_from_hps(hps, level, vqvae, conditioned)), given)
    if config.depth != depth:
        raise CheckpointError(f"{path}: has {depth} layers, {source} asks for {config.depth}")
    if hps.get("copy_input"):
        raise CheckpointError(f"{path}: takes its own codes for lyrics (copy_input), which is not supported")
    if not config.separate_head and not _is_tied(tensors):
        raise CheckpointError(
            f"{path}: has an output head of its own (x_out), {source} has none; is it the right preset?"
        )
    return config, source


def _is_tied(tensors: Mapping[str, Tensor]) -> bool:
    head, embedding = tensors.get("prior.x_out.weight"), tensors.get("prior.x_emb.weight")
    return head is None or embedding is None or head.data_ptr() == embedding.data_ptr() or _equal(head, embedding)


def _kind(config: PriorConfig) -> tuple[bool, bool, bool, bool]:
    """Whether there are labels, lyrics before the codes, lyrics with an encoder, a head of its own."""
    encoder = bool(config.lyrics and config.lyrics.encoder)
    return bool(config.labels), bool(config.lyric_len), encoder, config.separate_head


def _kind_of(tensors: Mapping[str, Tensor], vqvae: VQVAEConfig) -> tuple[bool, bool, bool, bool]:
    embedding = tensors.get("prior.x_emb.weight")
    before = embedding is not None and len(embedding) > vqvae.codebook_size
    labels, encoder = (any(key.startswith(part) for key in tensors) for part in ("y_emb.", "prime_prior."))
    return labels, before, encoder, not _is_tied(tensors)


def _prior_from_hps(hps: _Settings, level: int, vqvae: VQVAEConfig, conditioned: bool) -> PriorConfig:
    labels = lyrics = conditioner = None
    if hps.get("labels", False):
        genres, artists = hps.integers("y_bins")
        shortest, longest = hps.get("min_duration", 60), hps.get("max_duration", 600)
        if ranges := hps.get("t_ranges"):
            # In samples, in an older version's settings, whose durations are those of songs to train on.
            (shortest, longest), *_ = ranges
            rate = hps.integer("sr", vqvae.sample_rate)
            shortest, longest = shortest / rate, longest / rate
        # Upsamplers are told no time.
        bins = 0 if conditioned else hps.integer("t_bins", 64)
        slots = hps.integer("max_bow_genre_size", 1)
        labels = LabelConfig(artists, genres, slots, bins, float(shortest), float(longest))
    before = bool(hps.get("single_enc_dec", False))
    if before or hps.get("use_tokens", False):
        length, vocabulary = hps.integer("n_tokens"), hps.integer("n_vocab")
        lyrics = LyricConfig(vocabulary, length, None if before else _encoder_from_hps(hps, level, length, vocabulary))
    if conditioned:
        conditioner = ConditionerConfig(
            width=hps.integer("cond_width"),
            depth=hps.integer("cond_depth"),
            stages=vqvae.downs[level + 1],
            stride=vqvae.strides[level + 1],
            conv_ratio=float(hps.get("cond_m_conv", 1.0)),
            dilation_growth=hps.integer("cond_dilation_growth_rate", 1),
            dilation_cycle=hps.integer("cond_dilation_cycle", 0) or None,
            scale_residual=bool(hps.get("cond_res_scale", False)),
        )
    return PriorConfig(
        level=level,
        width=hps.integer("prior_width"),
        depth=hps.integer("prior_depth"),
        heads=hps.integer("heads"),
        context_len=hps.integer("n_ctx") + (lyrics.length if lyrics and before else 0),
        num_rows=hps.integer("blocks", 1),
        codebook_size=hps.integer("l_bins", vqvae.codebook_size),
        pattern_cycle=_patterns(hps.integer("attn_order")),
        attn_ratio=float(hps.get("m_attn", 0.25)),
        mlp_ratio=float(hps.get("m_mlp", 1.0)),
        scale_residual=bool(hps.get("res_scale", False)),
        conditioner=conditioner,
        labels=labels,
        lyrics=lyrics,
        separate_head=bool(hps.get("merged_decoder", False)),
    )


def _encoder_from_hps(hps: _Settings, level: int, length: int, vocabulary: int) -> PriorConfig:
    return PriorConfig(
        level=level,
        width=hps.integer("prime_width"),
        depth=hps.integer("prime_depth"),
        heads=hps.integer("prime_heads"),
        context_len=length,
        num_rows=hps.integer("prime_blocks", 1),
        codebook_size=vocabulary,
        pattern_cycle=_patterns(hps.integer("prime_attn_order")),
        attn_ratio=float(hps.get("prime_m_attn", 0.25)),
        mlp_ratio=float(hps.get("prime_m_mlp", 1.0)),
        scale_residual=bool(hps.get("prime_res_scale", False)),
    )


def _patterns(order: int) -> tuple[Pattern, ...]:
    if order not in _PATTERN_CYCLES:
        known = ", ".join(map(str, _PATTERN_CYCLES))
        raise ValueError(f"attn_order {order} (summary attention) is not supported, only {known}")
    return _PATTERN_CYCLES[order]


class _Settings:
    """`hps` as plain numbers; None and a missing key are the same."""

    def __init__(self, model: Model, *required: str) -> None:
        self.path, self._values = model.path, model.hps
        self.missing = [name for name in required if name not in model.hps]
        # Whether these are the settings of such a part at all.
        self.some = len(self.missing) < len(required)

    def get(self, name: str, default: Any = None) -> Any:
        value = self._values.get(name)
        return default if value is None else value

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.get(name, default)
        if not isinstance(value, (int, float, Integral)) or int(value) != value:
            raise CheckpointError(f"{self.path}: its hps hold {name} {value!r}, an integer is expected")
        return int(value)

    def integers(self, name: str) -> tuple[int, ...]:
        values = self.get(name, ())
        if not isinstance(values, (tuple, list)) or not all(isinstance(value, Integral) for value in values):
            raise CheckpointError(f"{self.path}: its hps hold {name} {values!r}, integers are expected")
        return tuple(int(value) for value in values)

    def build(self, config: Callable[[], Part]) -> Part:
        try:
            return config()
        except CheckpointError:
            raise
        except (ValueError, TypeError, ArithmeticError) as error:
            raise CheckpointError(f"{self.path}: its hps cannot be used: {error}") from None


def _given(path: Any, preset: object, kind: type[Part]) -> Part | None:
    """The config that the caller named."""
    if isinstance(preset, str):
        names = ", ".join(name for name, config in PRESETS.items() if isinstance(config, kind))
        if not isinstance(PRESETS.get(preset), kind):
            raise CheckpointError(f"{path}: there is no preset {preset} for it; there are {names}")
        preset = PRESETS[preset]
    if preset is not None and not isinstance(preset, kind):
        raise CheckpointError(f"{path}: takes a {kind.__name__} or the name of a preset, not a {type(preset).__name__}")
    return preset


def _without_hps(hps: _Settings, given: Part | None, published: Part | None) -> tuple[Part, str]:
    if given:
        return given, "the given preset"
    if hps.some or published is None:
        lack = f"its hps lack {', '.join(hps.missing)}" if hps.some else "it has no hps"
        raise CheckpointError(f"{hps.path}: {lack}, so its config is unknown; give a preset")
    return published, "the published size (the file has no hps)"


def _agreed(path: Any, read: Part, given: Part | None) -> tuple[Part, str]:
    """The config of the hps, which a given one must not contradict."""
    if given is not None and given != read:
        name = next(f.name for f in dataclasses.fields(read) if getattr(read, f.name) != getattr(given, f.name))
        raise CheckpointError(
            f"{path}: its hps say {name} {getattr(read, name)}, the given preset {getattr(given, name)}; leave it out"
        )
    return read, "its own config (hps)"


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape and torch.equal(a.float(), b.float())
