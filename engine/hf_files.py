"""Hugging Face's folders of Jukebox (`openai/jukebox-1b-lyrics`, `-5b-lyrics`): `.bin` or `.safetensors`, in one file
or sharded with an index. A part is read as if it were OpenAI's file, under OpenAI's names; priors count from the top
there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .checkpoint import CheckpointError
from .openai_pickle import Model, load_file

# The first that is there is read.
_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
_MATRIX = {"weight": "w", "bias": "b"}
# Their names as patterns, and OpenAI's; `_block_name` completes the last two.
_NAMES = (
    (r"(prior|encoder)\.embed_tokens\.weight", "{0}.x_emb.weight"),
    (r"prior\.fc_proj_out\.weight", "prior.x_out.weight"),
    (r"(prior|encoder)\.(start_token|pos_emb\.pos_emb)", "{0}.{1}"),
    (r"(prior|encoder)\.transformer\.(_attn_mods\.\d+)\.layer_norm_(\d\.\w+)", "{0}.transformer.{1}.ln_{2}"),
    (r"(prior|encoder)\.transformer\.(_attn_mods\.\d+\.\w+\.c_\w+)\.(?P<matrix>\w+)", "{0}.transformer.{1}.{matrix}"),
    (r"encoder\.proj_in\.(?P<matrix>\w+)", "prime_state_proj.{matrix}"),
    (r"encoder\.final_layer_norm\.(\w+)", "prime_state_ln.{0}"),
    (r"encoder\.lm_head\.weight", "prime_x_out.weight"),
    (r"metadata_embedding\.(artist_emb|bow_genre_emb)\.weight", "y_emb.{0}.emb.weight"),
    (r"metadata_embedding\.(\w+\.emb\.weight)", "y_emb.{0}"),
    (r"conditioner_blocks\.embed_tokens\.weight", "conditioner_blocks.0.x_emb.weight"),
    (r"conditioner_blocks\.layer_norm\.(\w+)", "conditioner_blocks.0.ln.{0}"),
    (r"bottleneck\.level_blocks\.(\d+)\.codebook", "bottleneck.level_blocks.{0}.k"),
    (r"(decoders\.\d+\.out\.\w+)", "{0}"),
    (r"conditioner_blocks\.upsampler\.(?P<block>.+)", "conditioner_blocks.0.cond.model.{block}"),
    (r"((?:en|de)coders\.\d+\.level_blocks\.\d+)\.(?P<block>.+)", "{0}.model.{block}"),
)


def find_files(folder: Path) -> dict[str, Path]:
    """The file of every tensor of a folder, by their names; empty where it is no such folder.

    Raises:
        CheckpointError: a file cannot be read, or an index is damaged.
    """
    for name in _FILES:
        path = folder / name
        if not path.exists():
            continue
        if path.suffix != ".json":
            return dict.fromkeys(_read(path, None), path)
        try:
            index = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
            if not all(isinstance(file, str) and Path(file).name == file != "" for file in index.values()):
                raise ValueError("it must name files of the folder")
            return {key: folder / file for key, file in index.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: is no index of a checkpoint ({error})") from None
    return {}


def levels(files: Mapping[str, Path]) -> int:
    """How many priors there are."""
    found = [int(match[1]) for key in files if (match := re.match(r"priors\.(\d{1,2})\.", key))]
    return 1 + max(found, default=-1)


def read_part(folder: Path, files: Mapping[str, Path], level: int | None) -> Model:
    """The prior of `level`, the VQ-VAE if None, with its tensors mapped and not read where the format allows.

    Raises:
        CheckpointError: a file is missing, damaged, or lacks what the index promises.
    """
    part = "vqvae." if level is None else f"priors.{levels(files) - 1 - level}."
    own = {key: path for key, path in files.items() if key.startswith(part)}
    if not own:
        raise CheckpointError(f"{folder}: holds no {part.rstrip('.')}")
    tensors = dict[str, Tensor]()
    for path in sorted(set(own.values())):
        keys = [key for key, file in own.items() if file == path]
        there = _read(path, keys)
        for key in keys:
            tensor = there.get(key)
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                raise CheckpointError(f"{path}: lacks {key}, or holds no floating-point tensor under that name")
            tensors[key.removeprefix(part)] = tensor
    stages = _stages(tensors)
    return Model(folder / part.rstrip("."), {_openai_name(key, stages): t for key, t in tensors.items()}, {})


def _read(path: Path, wanted: Sequence[str] | None) -> dict[str, Tensor | None]:
    """The tensors of a file; of safetensors those that are wanted, or, where that is None, their names alone."""
    if path.suffix != ".safetensors":
        return load_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            return dict.fromkeys(names) if wanted is None else {k: file.get_tensor(k) for k in wanted if k in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); get the file again") from None


def _stages(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The number of stages of each block of an encoder, by its name."""
    found = dict[str, int]()
    for key in tensors:
        if match := re.match(r"(encoders\.\d+\.level_blocks\.\d+)\.downsample_block\.(\d+)\.", key):
            found[match[1]] = max(found.get(match[1], 0), int(match[2]) // 2 + 1)
    return found


def _openai_name(name: str, stages: Mapping[str, int]) -> str:
    """OpenAI's name of their tensor; their own where there is none, so that it is named in an error."""
    for pattern, template in _NAMES:
        if match := re.fullmatch(pattern, name):
            groups = match.groupdict()
            if "matrix" in groups:
                groups["matrix"] = _MATRIX.get(groups["matrix"], groups["matrix"])
            if "block" in groups:
                groups["block"] = _block_name(groups["block"], stages.get(match[1], 0))
            found = template.format(*match.groups(), **groups)
            return re.sub(r"^encoder\.", "prime_prior.", found)
    return name


def _block_name(name: str, stages: int) -> str:
    """A tensor of a stack of strided (`stages` of them) or transposed convolutions: blocks alternate with those."""
    if match := re.fullmatch(r"proj_(in|out)\.(\w+)", name):
        return f"{0 if match[1] == 'in' else stages}.{match[2]}"
    match = re.fullmatch(r"(down|up)sample_block\.(\d+)\.(?:resnet_block\.(\d+)\.conv1d_([12])\.)?(\w+)", name)
    if match is None:
        return name
    # An upsampler's first convolution comes before its stages.
    place = int(match[2]) // 2 + (match[1] == "up")
    within = f"{int(match[2]) % 2}."
    block = "" if match[3] is None else f"model.{match[3]}.model.{2 * int(match[4]) - 1}."
    return f"{place}.{within}{block}{match[5]}"
