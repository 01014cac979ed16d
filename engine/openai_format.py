"""OpenAI's checkpoint files (`vqvae.pth.tar`, `prior_level_K.pth.tar`): the names of their tensors, and their
conversion to a folder of ours; Hugging Face's are read as if they were theirs (hf_files.py). Every tensor's name and
shape is checked against the config.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from . import hf_files
from .checkpoint import (
    CONFIG_FILE,
    VQVAE_FILE,
    CheckpointError,
    names_file,
    prior_file,
    save_config,
    save_names,
    save_network,
    without_memory,
)
from .config import JukeboxConfig, PriorConfig, VQVAEConfig
from .name_lists import ARTISTS_JSON, find_names
from .openai_config import prior_config, vqvae_config
from .openai_pickle import Model, read_model
from .prior import Prior
from .vqvae import VQVAE

# A preset by name, or a config, per part: "vqvae" or a prior's level.
Presets = Mapping[str | int, str | VQVAEConfig | PriorConfig]

Config = TypeVar("Config", VQVAEConfig, PriorConfig)
Network = TypeVar("Network", bound=nn.Module)

_ADVICE = "is it the right file, and the right preset?"
_HEAD = "prior.x_out.weight"
# Of the loss that lyrics have in training.
_UNUSED = "prime_x_out.weight"
_LAYER = "prior.transformer._attn_mods.{0}"
# Our tensor names, as patterns, and OpenAI's; `_convolution_name` completes the last three.
_NAMES = (
    (r"token_embedding", "prior.x_emb.weight"),
    (r"own_head", _HEAD),
    (r"pos_embedding", "prior.pos_emb.pos_emb"),
    (r"start_token", "prior.start_token"),
    (r"layers\.(\d+)\.(ln_\d\.\w+)", _LAYER + ".{1}"),
    (r"layers\.(\d+)\.qkv\.(w|b)\w+", _LAYER + ".attn.c_attn.{1}"),
    (r"layers\.(\d+)\.lyric_kv\.(w|b)\w+", _LAYER + ".attn.c_enc_kv.{1}"),
    (r"layers\.(\d+)\.proj\.(w|b)\w+", _LAYER + ".attn.c_proj.{1}"),
    (r"layers\.(\d+)\.up\.(w|b)\w+", _LAYER + ".mlp.c_fc.{1}"),
    (r"layers\.(\d+)\.down\.(w|b)\w+", _LAYER + ".mlp.c_proj.{1}"),
    (r"labels\.artist", "y_emb.artist_emb.emb.weight"),
    (r"labels\.genre", "y_emb.bow_genre_emb.emb.weight"),
    (r"labels\.song_length", "y_emb.total_length_emb.emb.weight"),
    (r"labels\.elapsed", "y_emb.absolute_pos_emb.emb.weight"),
    (r"labels\.progress", "y_emb.relative_pos_emb.emb.weight"),
    (r"lyric_encoder\.proj\.(w|b)\w+", "prime_state_proj.{0}"),
    (r"lyric_encoder\.ln\.(\w+)", "prime_state_ln.{0}"),
    (r"conditioner\.embedding", "conditioner_blocks.0.x_emb.weight"),
    (r"conditioner\.(ln\.\w+)", "conditioner_blocks.0.{0}"),
    (r"codebook_(\d+)", "bottleneck.level_blocks.{0}.k"),
    (r"(decoders\.\d+\.out\.\w+)", "{0}"),
    (r"conditioner\.upsampler\.(?P<inner>.+)", "conditioner_blocks.0.cond.{inner}"),
    (r"(decoders\.\d+)\.levels\.(\d+)\.(?P<inner>.+)", "{0}.level_blocks.{1}.{inner}"),
    (r"(encoders\.\d+)\.levels\.(?P<lower>\d+)\.(?P<inner>.+)", "{0}.level_blocks.{lower}.{inner}"),
)


def openai_name(name: str, config: VQVAEConfig | PriorConfig) -> str:
    """OpenAI's name of the tensor that is called `name` in our VQVAE or Prior."""
    if re.match(r"lyric_encoder\.(layers|\w+_embedding|start_token)", name):
        # Inside, the encoder is a prior.
        return "prime_" + openai_name(name.removeprefix("lyric_encoder."), config)
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
    names: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> JukeboxConfig:
    """Write the folder `out` from OpenAI's files, one part in memory at a time.

    vqvae: the VQ-VAE's file, or a folder with files of the usual names, or one of Hugging Face's; `priors` then adds to
        what the folder holds.
    priors: file per level, every level from 0 up to some level.
    presets: for files without `hps`; by default the published size that fits.
    dtype: of all of a prior; by default FP16 (BF16) where the file holds matrices in it, else FP32. The VQ-VAE is FP32.
    names: a folder with lists of artists and genres, as the original has them (`v2_artist_ids.txt`, ...), which labels
        may then name.
    progress: called with (parts done, parts, name of the part) after each part.

    Raises:
        CheckpointError: a file cannot be read, is not the part it is given as, or does not fit its config; or `out`
            already holds a checkpoint or cannot be written. `out` is then left without what was written.
    """
    readers = _readers(vqvae, priors or {})
    levels = sorted(level for level in readers if isinstance(level, int))
    presets = presets or {}
    if names is None and (vqvae / ARTISTS_JSON).exists():
        # Hugging Face's folders bring them along.
        names = vqvae
    if levels != list(range(len(levels))):
        given = ", ".join(map(str, levels))
        raise CheckpointError(f"{out}: priors of level {given} are given; a stack needs every level from 0 up")
    if spare := sorted(set(map(str, presets)) - set(map(str, readers))):
        raise CheckpointError(f"{out}: a preset for {', '.join(spare)}, but no such file")
    if (out / CONFIG_FILE).exists():
        raise CheckpointError(f"{out}: already holds a checkpoint; name another folder, or delete this one first")
    if names and not names.is_dir():
        raise CheckpointError(f"{names}: is no folder with lists of artists and genres")
    for name in (VQVAE_FILE, *map(prior_file, levels), *map(names_file, levels)):
        if (out / name).exists():
            raise CheckpointError(f"{out}: already holds {name}; name another folder, or delete that file first")

    created, written = not out.exists(), list[Path]()
    try:
        out.mkdir(parents=True, exist_ok=True)
        model = readers["vqvae"]()
        config, source = vqvae_config(model, presets.get("vqvae"))
        stack, vqvae_path = JukeboxConfig(config, ()), model.path
        written.append(out / VQVAE_FILE)
        save_network(written[-1], _network(model, VQVAE, config, source), torch.float32)
        del model
        _report(progress, 1, len(readers), "VQ-VAE")
        for level in levels:
            model = readers[level]()
            config, source = prior_config(model, level, stack.vqvae, presets.get(level))
            network = _network(model, Prior, config, source)
            try:
                stack = JukeboxConfig(stack.vqvae, (*stack.priors, config))
            except ValueError as error:
                raise CheckpointError(
                    f"{model.path}: does not go with {vqvae_path}: {error} (config from {source})"
                ) from None
            if names and config.labels:
                written.append(out / names_file(level))
                save_names(out, level, find_names(names, config.labels))
            written.append(out / prior_file(level))
            save_network(written[-1], network, dtype or _own_dtype(model))
            del model, network
            _report(progress, 2 + level, len(readers), f"level {level} prior")
        save_config(out, stack)
    except BaseException as error:
        for path in written:
            path.unlink(missing_ok=True)
        if created:
            with suppress(OSError):
                out.rmdir()
        if isinstance(error, (OSError, SafetensorError)):
            raise CheckpointError(f"{out}: cannot be written ({error})") from None
        raise
    return stack


def _readers(source: Path, priors: Mapping[int, Path]) -> dict[str | int, Callable[[], Model]]:
    """What reads each part, "vqvae" or a level, of a folder or a VQ-VAE's file, and of priors beside it."""
    found: dict[str | int, Callable[[], Model]] = {}
    if source.is_dir() and (theirs := hf_files.find_files(source)):
        found["vqvae"] = partial(hf_files.read_part, source, theirs, None)
        for level in range(hf_files.levels(theirs)):
            found[level] = partial(hf_files.read_part, source, theirs, level)
    else:
        vqvae, there = find_files(source) if source.is_dir() else (source, {})
        found["vqvae"] = partial(read_model, vqvae)
        priors = {**there, **priors}
    return found | {level: partial(read_model, path) for level, path in priors.items()}


def find_files(folder: Path) -> tuple[Path, dict[int, Path]]:
    """The VQ-VAE's file and the prior's file per level of a folder such as `~/.cache/jukebox/models/5b`."""
    priors = {}
    for path in folder.glob("prior_level_*.pth.tar"):
        if match := re.fullmatch(r"prior_level_(\d+)\.pth\.tar", path.name):
            priors[int(match[1])] = path
    return folder / "vqvae.pth.tar", priors


def _network(model: Model, kind: Callable[[Config], Network], config: Config, source: str) -> Network:
    """Our network around the tensors of the file. No copies."""
    network = without_memory(lambda: kind(config))
    path, tensors = model.path, model.tensors
    left = {name: tensor for name, tensor in tensors.items() if name != _UNUSED}
    if not (isinstance(config, PriorConfig) and config.separate_head):
        # The output head is the embedding.
        left.pop(_HEAD, None)
    taken = {}
    for name, expected in network.state_dict().items():
        theirs = _file_name(openai_name(name, config), tensors)
        tensor = left.pop(theirs, None)
        if tensor is None:
            shape = tuple(expected.shape)
            raise CheckpointError(f"{path}: lacks tensor {theirs} {shape}, which {source} asks for; {_ADVICE}")
        if tensor.shape != expected.shape:
            raise CheckpointError(
                f"{path}: tensor {theirs} has shape {tuple(tensor.shape)}, {source} asks for {tuple(expected.shape)}; "
                f"{_ADVICE}"
            )
        if name == "token_embedding" and isinstance(config, PriorConfig) and config.lyric_len:
            # There characters come before codes.
            tensor = tensor.roll(-(config.vocabulary - config.codebook_size), 0)
        # A tensor that is part of a larger storage cannot be written as it is.
        whole = tensor.untyped_storage().nbytes() == tensor.nbytes
        taken[name] = tensor if whole else tensor.clone()
    if left:
        theirs, tensor = next(iter(left.items()))
        raise CheckpointError(
            f"{path}: has {len(left)} tensors that {source} has no place for, the first {theirs} "
            f"{tuple(tensor.shape)}; {_ADVICE}"
        )
    network.load_state_dict(taken, assign=True)
    return network


def _file_name(name: str, tensors: Mapping[str, Tensor]) -> str:
    """`name`, or what it is called where the stack was trained with gradient checkpointing."""
    checkpointed = re.sub(r"(\.level_blocks\.\d+|\.cond)\.model\.(\d+\.\d)\.model\.", r"\1.model.\2.blocks.", name)
    return checkpointed if checkpointed in tensors else name


def _own_dtype(model: Model) -> torch.dtype:
    halves = {tensor.dtype for tensor in model.tensors.values() if tensor.ndim == 2} & {torch.float16, torch.bfloat16}
    return halves.pop() if len(halves) == 1 else torch.float32


def _report(progress: Callable[[int, int, str], None] | None, done: int, total: int, part: str) -> None:
    if progress:
        progress(done, total, part)
