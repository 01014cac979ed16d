"""Our own checkpoint folders: config.json, vqvae.safetensors and one prior_K.safetensors per level. A folder may name a
`base` in its config.json, another such folder (by a path relative to its own), that has the files which it lacks, and
the tensors that a file of its own leaves out: systems distilled from one teacher may share their embeddings.

Nothing in them is executed when they are read. Modules are built without memory and take the tensors of the file one
by one, so a level is in host memory once, in the dtype it is used in.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .config import JukeboxConfig
from .config_json import from_json, to_json
from .labels import Names
from .prior import Prior
from .vqvae import VQVAE
from .whole_file import whole_file

FORMAT = 1
DEMO = Path(__file__).parent / "demo"
Network = TypeVar("Network", bound=nn.Module)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and what to do about it."""


def prior_file(level: int) -> str:
    return f"prior_{level}.safetensors"


CONFIG_FILE, VQVAE_FILE = "config.json", "vqvae.safetensors"
# In a file's metadata: the digest of the tensors that it leaves to the base.
SHARED = "shared"


def network_files(config: JukeboxConfig) -> list[str]:
    """The names of all files of a stack but its config."""
    return [VQVAE_FILE, *(prior_file(prior.level) for prior in config.priors)]


def network_paths(folder: Path, name: str) -> list[Path]:
    """The files of `folder` and its base that hold the network of file `name`: one, or, where the folder's own leaves
    tensors to the base, both, its own first. The folder's, if there is none."""
    own, base = folder / name, _read_config(folder).get("base")
    theirs = (folder / base).resolve() / name if base else own
    if not own.exists():
        return [theirs] if theirs.exists() else [own]
    return [own, theirs] if base and SHARED in _metadata(own) else [own]


def shared_priors(folder: Path, other: Path) -> list[int]:
    """The levels whose priors both folders have in the same files, one by way of its base."""
    levels = range(min(len(load_config(each).priors) for each in (folder, other)))
    theirs, ours = (
        [[path.resolve() for path in network_paths(each, prior_file(level))] for level in levels]
        for each in (folder, other)
    )
    return [level for level in levels if theirs[level] == ours[level]]


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        # Whoever reads the tensors will tell.
        return {}


def save_config(folder: Path, config: JukeboxConfig, base: str | None = None) -> None:
    """Write `config.json`; `folder` is made if need be. base: the path from `folder` to its base, if it has one."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {"format": FORMAT, **({"base": base} if base else {}), **to_json(config)}
    text = json.dumps(values, indent=2) + "\n"
    with whole_file(folder / CONFIG_FILE) as part:
        part.write_text(text)


def save_network(path: Path, network: nn.Module, dtype: torch.dtype = torch.float16, base: Path | None = None) -> None:
    """Write the parameters and buffers of `network` to one safetensors file, in `dtype`.

    The network's name goes with them: levels may have the same shapes. base: a file of such a network; tensors that are
    the same in it are left out, and their digest is kept.
    """
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in network.state_dict().items()}
    metadata = {"network": _name(network)}
    if base:
        with safe_open(base, framework="pt") as file:
            theirs = {name: file.get_tensor(name) for name in set(tensors) & set(file.keys())}
        shared = {
            name: tensor
            for name, tensor in theirs.items()
            if tensor.dtype == dtype and torch.equal(tensor, tensors[name])
        }
        if shared:
            tensors = {name: tensor for name, tensor in tensors.items() if name not in shared}
            metadata[SHARED] = _digest_of(shared)
    _save(path, tensors, metadata)


def copy_network(folder: Path, name: str, path: Path) -> None:
    """Write the network of file `name` of a folder to `path`, as it is stored, with what it leaves to the base. Raises
    CheckpointError."""
    paths = network_paths(folder, name)
    if len(paths) == 1:
        shutil.copyfile(paths[0], path)
        return
    with safe_open(paths[0], framework="pt") as own, safe_open(paths[1], framework="pt") as theirs:
        metadata, names = own.metadata(), set(own.keys())
        tensors = _shared(paths, sorted(set(theirs.keys()) - names), metadata.pop(SHARED))
        tensors |= {name: own.get_tensor(name) for name in names}
    _save(path, tensors, metadata)


def _digest_of(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    with whole_file(path) as part:
        save_file(tensors, part, metadata)
        # safetensors makes files that only their owner may read; a package is for everyone.
        part.chmod(0o644)


def load_config(folder: Path) -> JukeboxConfig:
    """Raises CheckpointError where `folder` is no checkpoint of this format."""
    values = _read_config(folder)
    values.pop("base", None)
    try:
        return from_json(JukeboxConfig, values)
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from None


def _read_config(folder: Path) -> dict[str, Any]:
    """The values of a `config.json`, `base` with them. Raises CheckpointError."""
    path = folder / CONFIG_FILE
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise ValueError(f"not a format {FORMAT} fastjukebox config")
        if not isinstance(values.get("base", ""), str):
            raise ValueError("base must be the path of a folder")
        return values
    except FileNotFoundError:
        hint = " (OpenAI files? run `fastjukebox convert` on them first)" if folder.is_dir() else ""
        raise CheckpointError(f"{path} does not exist{hint}") from None
    except (ValueError, AttributeError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{path}: {reason}") from None


def load_vqvae(folder: Path, device: torch.device | str = "cpu") -> VQVAE:
    """The VQ-VAE of a folder, in FP32: it is small, and the codes it finds should not depend on a dtype."""
    config = load_config(folder).vqvae
    return _load(network_paths(folder, VQVAE_FILE), lambda: VQVAE(config), device, lambda name, tensor: torch.float32)


def load_prior(
    folder: Path,
    level: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    keep_fp16: bool = False,
) -> Prior:
    """The prior of `level` (0 is the finest) of a folder.

    keep_fp16: matrices of layers that the file holds in FP16 stay as they are, on a CPU in the file's own pages, which
        the system may take back. They are widened where they are used, to the same result.
    """
    config = load_config(folder)
    if not 0 <= level < len(config.priors):
        raise CheckpointError(f"{folder}: has priors of level 0 to {len(config.priors) - 1}, not {level}")

    def used_as(name: str, tensor: Tensor) -> torch.dtype:
        matrix = name.startswith("layers.") and tensor.dim() == 2
        return tensor.dtype if keep_fp16 and matrix and tensor.dtype == torch.float16 else _stored_as(name, dtype)

    return _load(network_paths(folder, prior_file(level)), lambda: Prior(config.priors[level]), device, used_as)


def names_file(level: int) -> str:
    return f"names_{level}.json"


def save_names(folder: Path, level: int, names: Names) -> None:
    text = json.dumps(names._asdict(), indent=1, ensure_ascii=False) + "\n"
    with whole_file(folder / names_file(level)) as part:
        part.write_text(text, encoding="utf-8")


def load_names(folder: Path, level: int) -> Names | None:
    """The names of a level's artists and genres, if the folder has them. Raises CheckpointError."""
    path = network_paths(folder, names_file(level))[0]
    try:
        names = Names(**json.loads(path.read_text(encoding="utf-8")))
        if not all(isinstance(table, dict) and all(map(is_id, table.values())) for table in names):
            raise ValueError("it must hold an id for each name")
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError, OSError) as error:
        raise CheckpointError(f"{path}: holds no names of artists and genres ({error})") from None
    return names


def is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def prior_bytes(folder: Path, config: JukeboxConfig) -> int:
    """Bytes of all prior files together; what is missing counts as nothing."""
    paths = (path for prior in config.priors for path in network_paths(folder, prior_file(prior.level)))
    return sum(path.stat().st_size for path in paths if path.exists())


def _load(
    paths: Sequence[Path],
    build: Callable[[], Network],
    device: torch.device | str,
    used_as: Callable[[str, Tensor], torch.dtype],
) -> Network:
    """paths: as `network_paths` gives them. used_as: the dtype of a tensor in the network, from its name and the stored
    one."""
    network = without_memory(build)
    path = paths[0]
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            found = metadata.get("network", _name(network))
            if found != _name(network):
                raise CheckpointError(f"{path}: holds a {found}, not a {_name(network)}")
            names = list(file.keys())
            shared = {}
            if SHARED in metadata:
                shared = _shared(paths, sorted(set(network.state_dict()) - set(names)), metadata[SHARED])
            own = ((name, file.get_tensor(name)) for name in names)
            tensors = itertools.chain(own, ((name, tensor.to(device)) for name, tensor in shared.items()))
            assign(network, ((name, tensor.to(used_as(name, tensor))) for name, tensor in tensors), path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); is the file complete?") from None
    return network.eval().requires_grad_(False)


def _shared(paths: Sequence[Path], names: Sequence[str], digest: str) -> dict[str, Tensor]:
    """The tensors that the first of `paths` leaves to the second. Raises CheckpointError."""
    if len(paths) < 2:
        raise CheckpointError(f"{paths[0]}: leaves tensors to the folder's base, but its config.json names none")
    try:
        with safe_open(paths[1], framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{paths[1]}: cannot be read ({error}); {paths[0]} has tensors in common with it"
        ) from None
    if _digest_of(tensors) != digest:
        raise CheckpointError(
            f"{paths[1]}: not what {paths[0]} was written beside: its {names[0]} or others differ; export both again"
        )
    return tensors


class _NoInitialization(TorchFunctionMode):
    """On the meta device a random initialization does nothing but import half of torch, which takes seconds."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return args[0] if func in (Tensor.normal_, Tensor.uniform_) else func(*args, **(kwargs or {}))


def without_memory(build: Callable[[], Network]) -> Network:
    """`build()` with parameters that have shapes and no storage, for `assign`."""
    with torch.device("meta"), _NoInitialization():
        return build()


def _stored_as(name: str, dtype: torch.dtype) -> torch.dtype:
    # Small and run once per window; FP32 in the original whatever the transformer's dtype, but the encoder's matrices.
    return torch.float32 if name.startswith(("conditioner.", "labels.", "lyric_encoder.")) else dtype


def assign(network: nn.Module, tensors: Iterable[tuple[str, Tensor]], path: Path) -> None:
    """Give `network` (built on the meta device) its tensors.

    Raises:
        CheckpointError: a tensor is missing, unexpected, of another shape, or holds what is not finite; names the file,
            the tensor, both shapes.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {}
    for name, tensor in tensors:
        if name not in expected:
            raise CheckpointError(f"{path}: tensor {name} {tuple(tensor.shape)} has no place in a {_name(network)}")
        if tuple(tensor.shape) != expected[name]:
            raise CheckpointError(
                f"{path}: tensor {name} has shape {tuple(tensor.shape)}, the config asks for {expected[name]}"
            )
        # What a damaged file holds, or what is too large for the dtype, would be sampled as noise without a word.
        if not all(bound.isfinite() for bound in tensor.aminmax()):
            raise CheckpointError(f"{path}: tensor {name} holds numbers that are not finite in {tensor.dtype}")
        found[name] = tensor
    missing = sorted(set(expected) - set(found))
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} tensors are missing, the first {missing[0]} {expected[missing[0]]}; "
            f"is this the file of a {_name(network)}?"
        )
    network.load_state_dict(found, assign=True)


def _name(network: nn.Module) -> str:
    return f"level {network.config.level} prior" if isinstance(network, Prior) else type(network).__name__


def fingerprint(folder: Path) -> str:
    """A short identity of a folder's weights: its config, and every byte of its files."""
    digest = hashlib.sha256((folder / CONFIG_FILE).read_bytes())
    config = load_config(folder)
    for prior in config.priors:
        # They say which ids a request's names stand for.
        path = network_paths(folder, names_file(prior.level))[0]
        digest.update(path.read_bytes() if path.exists() else b"")
    for name in network_files(config):
        # What it shares with the base is in its metadata, as a digest.
        path = network_paths(folder, name)[0]
        if path.exists():
            status = path.stat()
            digest.update(f"{name} {_digest(path.resolve(), status.st_size, status.st_mtime_ns)}".encode())
    return digest.hexdigest()[:16]


@lru_cache
def _digest(path: Path, size: int, modified: int) -> str:
    """Of a file's bytes, read once as long as its size and its time (ns) stay the same."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
