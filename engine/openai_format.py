"""OpenAI's checkpoint files (`vqvae.pth.tar`, `prior_level_K.pth.tar`): their tensor names and settings, and their
conversion to a folder of ours.

The config of a part comes from the file's `hps`, else from a preset; either way every tensor's name and shape is
checked against it. Shapes do not show everything: in a file without `hps`, the number of heads and the patterns are
the preset's, and an upsampler of level 1 looks like one of level 0.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from .checkpoint import VQVAE_FILE, CheckpointError, assign, prior_file, save_config, save_network
from .config import PRESETS, ConditionerConfig, JukeboxConfig, PriorConfig, VQVAEConfig
from .openai_pickle import Model, read_model
from .patterns import Pattern
from .prior import Prior
from .vqvae import VQVAE

# A preset by name, or a config, per part: "vqvae" or a prior's level.
Presets = Mapping[str | int, str | VQVAEConfig | PriorConfig]

_LAYER = "prior.transformer._attn_mods.{0}"
# Our tensor names, as patterns, and OpenAI's; `_convolution_name` completes the last three.
_NAMES = (
    (r"token_embedding", "prior.x_emb.weight"),
    (r"pos_embedding", "prior.pos_emb.pos_emb"),
    (r"start_token", "prior.start_token"),
    (r"layers\.(\d+)\.(ln_\d\.\w+)", _LAYER + ".{1}"),
    (r"layers\.(\d+)\.qkv\.(w|b)\w+", _LAYER + ".attn.c_attn.{1}"),
    (r"layers\.(\d+)\.proj\.(w|b)\w+", _LAYER + ".attn.c_proj.{1}"),
    (r"layers\.(\d+)\.up\.(w|b)\w+", _LAYER + ".mlp.c_fc.{1}"),
    (r"layers\.(\d+)\.down\.(w|b)\w+", _LAYER + ".mlp.c_proj.{1}"),
    (r"conditioner\.embedding", "conditioner_blocks.0.x_emb.weight"),
    (r"conditioner\.(ln\.\w+)", "conditioner_blocks.0.{0}"),
    (r"codebook_(\d+)", "bottleneck.level_blocks.{0}.k"),
    (r"(decoders\.\d+\.out\.\w+)", "{0}"),
    (r"conditioner\.upsampler\.(?P<inner>.+)", "conditioner_blocks.0.cond.{inner}"),
    (r"(decoders\.\d+)\.levels\.(\d+)\.(?P<inner>.+)", "{0}.level_blocks.{1}.{inner}"),
    (r"(encoders\.\d+)\.levels\.(?P<lower>\d+)\.(?P<inner>.+)", "{0}.level_blocks.{lower}.{inner}"),
)

# `attn_order` and the patterns it repeats. The others attend to lyrics or to summaries of rows.
_PATTERN_CYCLES = {
    0: (Pattern.DENSE,),
    1: (Pattern.ROW, Pattern.COLUMN),
    2: (Pattern.ROW, Pattern.COLUMN, Pattern.PREVIOUS_ROW),
    9: (Pattern.ROW, Pattern.COLUMN, Pattern.PREVIOUS_ROW, Pattern.DENSE),
}


def openai_name(name: str, config: VQVAEConfig | PriorConfig) -> str:
    """OpenAI's name of the tensor that is called `name` in our VQVAE or Prior."""
    for pattern, template in _NAMES:
        if match := re.fullmatch(pattern, name):
            groups = match.groupdict()
            if "inner" in groups:
                stages = None
                if "lower" in groups and isinstance(config, VQVAEConfig):
                    stages = config.downs[int(groups["lower"])]
                groups["inner"] = _convolution_name(groups["inner"], stages)
            return template.format(*match.groups(), **groups)
    raise KeyError(name)


def _convolution_name(name: str, stages: int | None) -> str:
    """A tensor of a Downsampler of `stages` stages, or of an Upsampler (None)."""
    part, *indices, end = name.split(".")
    if part == "into":
        return f"model.0.{end}"
    if part == "out":
        return f"model.{stages}.{end}"
    # An upsampler's `into` comes before its stages; in a stage the stack comes before the transposed convolution.
    stage, stack = (int(indices[0]), 1) if stages is not None else (int(indices[0]) + 1, 0)
    if part != "stacks":
        return f"model.{stage}.{1 - stack}.{end}"
    _, block, convolution = indices
    return f"model.{stage}.{stack}.model.{block}.model.{1 if convolution == 'dilated' else 3}.{end}"


def convert(
    vqvae: Path,
    priors: Mapping[int, Path] | None,
    out: Path,
    presets: Presets | None = None,
    dtype: torch.dtype | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> JukeboxConfig:
    """Write the folder `out` from OpenAI's files, one part in memory at a time.

    vqvae: the VQ-VAE's file, or a folder with files of the usual names; `priors` then adds to what the folder holds.
    priors: file per level, every level from 0 up to some level.
    presets: for files without `hps`; by default the published size that fits.
    dtype: of the priors; by default FP16 (BF16) where the file holds matrices in it, else FP32. The VQ-VAE is FP32.
    progress: called with (parts done, parts, name of the part) after each part.

    Raises:
        CheckpointError: a file cannot be read, is not the part it is given as, or does not fit its config; or `out`
            already holds a checkpoint or cannot be written. `out` is then left without what was written.
    """
    if vqvae.is_dir():
        vqvae, found = find_files(vqvae)
        priors = {**found, **(priors or {})}
    priors = dict(sorted((priors or {}).items()))
    presets = presets or {}
    if list(priors) != list(range(len(priors))):
        given = ", ".join(map(str, priors))
        raise CheckpointError(f"{out}: priors of level {given} are given; a stack needs every level from 0 up")
    if spare := sorted(set(map(str, presets)) - {"vqvae", *map(str, priors)}):
        raise CheckpointError(f"{out}: a preset for {', '.join(spare)}, but no such file")
    if (out / "config.json").exists():
        raise CheckpointError(f"{out}: already holds a checkpoint; name another folder, or delete this one first")

    created, written = not out.exists(), []
    try:
        out.mkdir(parents=True, exist_ok=True)
        model = read_model(vqvae)
        part, source = vqvae_config(model, presets.get("vqvae"))
        config = JukeboxConfig(part, ())
        written.append(out / VQVAE_FILE)
        _write(model, VQVAE, part, source, written[-1], torch.float32)
        del model
        _report(progress, 1, 1 + len(priors), "VQ-VAE")
        for level, path in priors.items():
            model = read_model(path)
            part, source = prior_config(model, level, config.vqvae, presets.get(level))
            try:
                config = JukeboxConfig(config.vqvae, (*config.priors, part))
            except ValueError as error:
                raise CheckpointError(f"{path}: does not go with {vqvae}: {error} (config from {source})") from None
            written.append(out / prior_file(level))
            _write(model, Prior, part, source, written[-1], dtype or _own_dtype(model.tensors))
            del model
            _report(progress, 2 + level, 1 + len(priors), f"level {level} prior")
        save_config(out, config)
    except BaseException as error:
        for path in written:
            path.unlink(missing_ok=True)
        if created and out.is_dir():
            out.rmdir()
        if isinstance(error, (OSError, SafetensorError)):
            raise CheckpointError(f"{out}: cannot be written ({error})") from None
        raise
    return config


def find_files(folder: Path) -> tuple[Path, dict[int, Path]]:
    """The VQ-VAE's file and the prior's file per level of a folder such as `~/.cache/jukebox/models/5b`."""
    priors = {}
    for path in folder.glob("prior_level_*.pth.tar"):
        if match := re.fullmatch(r"prior_level_(\d+)\.pth\.tar", path.name):
            priors[int(match[1])] = path
    return folder / "vqvae.pth.tar", priors


def vqvae_config(model: Model, preset: object = None) -> tuple[VQVAEConfig, str]:
    """The config of a VQ-VAE's file, and where it is from."""
    if any(key.startswith("prior.") for key in model.tensors):
        raise CheckpointError(f"{model.path}: is a prior's file, given as the VQ-VAE")
    given = _given(model.path, preset, VQVAEConfig)
    hps = _Settings(model, "downs_t", "strides_t", "emb_width", "l_bins", "width", "depth")
    if not hps.complete:
        return _without_hps(hps, given, VQVAEConfig(), "vqvae")
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
    if hps.complete and hps.integer("level", level) != level:
        raise CheckpointError(f"{path}: is a prior of level {hps.integer('level')} (its hps), given as level {level}")
    _refuse_unsupported(model, hps)
    conditioned = any(key.startswith("conditioner_blocks.") for key in tensors)
    if level >= vqvae.levels:
        raise CheckpointError(f"{path}: is given as level {level}, the VQ-VAE has levels 0 to {vqvae.levels - 1}")
    if conditioned == (level == vqvae.levels - 1):
        kind = "an upsampler (it has conditioner_blocks)" if conditioned else "a top prior (no conditioner_blocks)"
        raise CheckpointError(f"{path}: is {kind}, given as level {level} of {vqvae.levels}; levels count from the finest")

    given = _given(path, preset, PriorConfig)
    if given and given.level != level:
        raise CheckpointError(f"{path}: is given as level {level}, its preset is one of level {given.level}")
    depth = 1 + max((int(key.split(".")[3]) for key in tensors if re.match(r"prior\.\w+\._attn_mods\.\d", key)), default=0)
    if not hps.complete:
        family = {preset.level: preset for preset in PRESETS.values() if isinstance(preset, PriorConfig)}.get(level)
        published = dataclasses.replace(family, depth=depth) if family else None
        config, source = _without_hps(hps, given, published, f"level {level}")
    else:
        config, source = _agreed(path, hps.build(lambda: _prior_from_hps(hps, level, vqvae, conditioned)), given)
    if config.depth != depth:
        raise CheckpointError(f"{path}: has {depth} layers, {source} asks for {config.depth}")
    return config, source


def _prior_from_hps(hps: _Settings, level: int, vqvae: VQVAEConfig, conditioned: bool) -> PriorConfig:
    order = hps.integer("attn_order")
    if order not in _PATTERN_CYCLES:
        known = ", ".join(map(str, _PATTERN_CYCLES))
        raise ValueError(f"attn_order {order} (lyrics or summary attention) is not supported yet, only {known}")
    conditioner = None
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
        context_len=hps.integer("n_ctx"),
        num_rows=hps.integer("blocks", 1),
        codebook_size=hps.integer("l_bins", vqvae.codebook_size),
        pattern_cycle=_PATTERN_CYCLES[order],
        attn_ratio=float(hps.get("m_attn", 0.25)),
        mlp_ratio=float(hps.get("m_mlp", 1.0)),
        scale_residual=bool(hps.get("res_scale", False)),
        conditioner=conditioner,
    )
