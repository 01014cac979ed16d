"""The commands around sampling: `encode`, `decode`, `convert` and `info`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import click

from .. import version
from ..stopping import raise_when_stopped
from .options import PATH
from .terminal import Command, load_model, new_file, report

_DEVICE = click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...")
_OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace the file that is written.")


@click.command(cls=Command, short_help="Turn an audio file into a codes file.")
@click.argument("audio", type=PATH)
@click.argument("codes", type=PATH)
@click.option("--model", default="demo", show_default=True, metavar="NAME|FOLDER", help="Whose VQ-VAE.")
@_DEVICE
@_OVERWRITE
def encode(audio: Path, codes: Path, model: str, device: str, overwrite: bool) -> None:
    """Turn the file AUDIO into the codes file CODES (.safetensors), all levels.

    Any rate and number of channels; what is left over after the last whole top-level code is left out.
    """
    from ..runs import write_codes
    from ..vqvae import fingerprint

    if codes.suffix.lower() != ".safetensors":
        raise ValueError(f"{codes}: the ending of a codes file must be .safetensors")
    new_file(codes, overwrite)
    jukebox = load_model(model, device, None, "auto")
    raise_when_stopped()
    found = jukebox.encode(audio)
    write_codes(codes, found, fingerprint(jukebox.vqvae))
    seconds = found[0].shape[1] * jukebox.config.vqvae.samples_per_code(0) / jukebox.sample_rate
    counts = ", ".join(f"{tensor.shape[1]:,} at level {level}" for level, tensor in enumerate(found))
    report([("wrote", str(codes)), ("audio", f"{seconds:.2f} s of {audio}"), ("codes", counts)])


@click.command(cls=Command, short_help="Turn codes into an audio file.")
@click.argument("codes", type=PATH)
@click.argument("out", type=PATH)
@click.option("--level", type=int, help="Which level to decode.  [default: the finest given]")
@click.option("--model", metavar="NAME|FOLDER", help="Whose VQ-VAE.  [default: that of a run, else demo]")
@_DEVICE
@_OVERWRITE
def decode(codes: Path, out: Path, level: int | None, model: str | None, device: str, overwrite: bool) -> None:
    """Turn CODES into the audio file OUT (.wav, .flac or .ogg).

    CODES is a codes file (.safetensors), a run directory, or the original's data.pth.tar.
    """
    from ..audio import check_output, output_files, write_audio
    from .prompts import own_model, read_codes

    check_output(out)
    jukebox = load_model(model or own_model(codes), device, None, "auto")
    raise_when_stopped()
    given, samples = read_codes(codes, jukebox)
    held = [k for k, tensor in enumerate(given) if tensor.shape[1]]
    level = held[0] if level is None else level
    if level not in held:
        raise ValueError(f"--level {level}: {codes} holds level {', '.join(map(str, held))}")
    for path in output_files(out, len(given[level])):
        new_file(path, overwrite)
    audio = jukebox.decode(given[level], level)[:, :samples]
    files = write_audio(out, audio, jukebox.sample_rate)
    rows = [("wrote", ", ".join(map(str, files))), ("audio", f"{audio.shape[1] / jukebox.sample_rate:.2f} s")]
    report([*rows, ("level", str(level))])


def _pairs(option: str, values: tuple[str, ...]) -> dict[str | int, str]:
    """{"vqvae" or level: value} of PART=VALUE options. Raises ValueError."""
    pairs: dict[str | int, str] = {}
    for text in values:
        part, equals, value = text.partition("=")
        if not equals or not value or not (part == "vqvae" or part.isdecimal()):
            raise ValueError(f"{option} {text}: give it as LEVEL={option.strip('-').upper()}")
        pairs[part if part == "vqvae" else int(part)] = value
    return pairs


@click.command(cls=Command, short_help="Convert OpenAI's or Hugging Face's files to a folder.")
@click.argument("source", type=PATH)
@click.argument("out", type=PATH)
@click.option("--prior", multiple=True, metavar="LEVEL=FILE", help="A prior's file, where SOURCE does not hold it.")
@click.option(
    "--preset", multiple=True, metavar="PART=NAME", help="For files without settings: vqvae=NAME or LEVEL=NAME."
)
@click.option(
    "--dtype",
    type=click.Choice(("float32", "float16", "bfloat16")),
    help="Of the priors.  [default: that of the files' matrices]",
)
@click.option(
    "--names",
    type=PATH,
    metavar="FOLDER",
    help="The lists of artists and genres: the original's jukebox/data/ids.  [default: Hugging Face's in SOURCE]",
)
def convert(
    source: Path, out: Path, prior: tuple[str, ...], preset: tuple[str, ...], dtype: str | None, names: Path | None
) -> None:
    """Convert OpenAI's or Hugging Face's checkpoint files to the folder OUT.

    SOURCE is a folder with vqvae.pth.tar and prior_level_K.pth.tar, or the vqvae.pth.tar itself, or a copy of
    openai/jukebox-1b-lyrics or -5b-lyrics from Hugging Face. Nothing that is pickled in the files is executed.

    \b
    fastjukebox convert ~/.cache/jukebox/models/5b my-model
    fastjukebox convert 5b/vqvae.pth.tar my-model --prior 0=5b/prior_level_0.pth.tar ...
    """
    from .. import openai_format
    from ..config import PRESETS
    from ..jukebox import DTYPES

    presets = _pairs("--preset", preset)
    for name in presets.values():
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    priors: dict[int, Path] = {}
    for level, path in _pairs("--prior", prior).items():
        if not isinstance(level, int):
            raise ValueError("--prior: give it as LEVEL=FILE")
        priors[level] = Path(path).expanduser()
    source = source.expanduser()
    names = names and names.expanduser()
    if not source.exists():
        raise ValueError(f"{source} does not exist")

    def progress(done: int, total: int, part: str) -> None:
        click.echo(f"{part} ({done} of {total})", err=True)

    raise_when_stopped()
    own_dtype = DTYPES[dtype] if dtype else None
    config = openai_format.convert(
        source, priors, out, presets=presets, dtype=own_dtype, names=names, progress=progress
    )
    report([("wrote", str(out)), ("levels", str(len(config.priors))), ("try", f"fastjukebox sample --model {out}")])


@click.command(cls=Command, short_help="Print versions, devices, decoders, models.")
@click.option("--model", metavar="NAME|FOLDER", help="Describe this model too.")
def info(model: str | None) -> None:
    """Print versions, devices, decoders, formats, and what a model is made of."""
    import torch

    from ...kernels.native_library import instruction_set
    from .. import checkpoint
    from ..audio import FORMATS
    from ..decoder import BACKENDS
    from ..jukebox import MODELS
    from ..threads import usable_threads

    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    rows = [
        ("fastjukebox", version()),
        ("python", platform.python_version()),
        ("torch", torch.__version__),
        ("triton", _version("triton")),
        ("cpu", f"{_processor()}, {os.cpu_count()} cores, {usable_threads()} threads"),
    ]
    for name in cuda:
        gpu = torch.cuda.get_device_properties(name)
        rows.append((name, f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, sm_{gpu.major}{gpu.minor}"))
    if not cuda:
        reason = "this torch is built without CUDA" if not torch.version.cuda else "torch finds no usable GPU"
        rows.append(("cuda", f"no: {reason}"))
    for device in ("cpu", *cuda):
        for backend in BACKENDS:
            reason = backend.missing(torch.device(device), torch.float32)
            able = f"can run on {device}" + (f", with {instruction_set()}" if backend.native and not reason else "")
            rows.append((f"decoder {backend.name}", f"cannot run on {device}: {reason}" if reason else able))
    rows.append(("formats", " ".join(suffix[1:] for suffix in FORMATS)))
    for name, folder in MODELS.items():
        rows.append(
            (f"model {name}", str(folder) if (folder / checkpoint.CONFIG_FILE).exists() else f"missing in {folder}")
        )
    report(rows)
    if model:
        click.echo()
        _describe(model)


def _describe(model: str) -> None:
    from safetensors import safe_open

    from .. import checkpoint
    from ..jukebox import MODELS

    folder = MODELS.get(model, Path(model).expanduser())
    config = checkpoint.load_config(folder)
    vqvae = config.vqvae
    rows = [
        ("model", str(folder)),
        (
            "audio",
            f"{vqvae.sample_rate} Hz, {vqvae.levels} levels, {vqvae.codebook_size} codes of {vqvae.code_dim} numbers",
        ),
    ]
    for level, prior in enumerate(config.priors):
        unit = vqvae.samples_per_code(level)
        seconds = prior.window_len * unit / vqvae.sample_rate
        rows.append(
            (
                f"level {level}",
                f"{prior.depth} layers of width {prior.width}, {prior.heads} heads, {unit} samples per code, "
                f"windows of {prior.window_len} codes ({seconds:.2f} s)",
            )
        )
        if labels := prior.labels:
            known = "by name or id" if checkpoint.load_names(folder, level) else "by id"
            told = [f"{labels.artists} artists and {labels.genres} genres {known}"]
            told += [f"songs of {labels.min_seconds:g} to {labels.max_seconds:g} s"] if labels.time_bins else []
            told += [f"{prior.lyrics.length} characters of lyrics a window"] if prior.lyrics else []
            rows.append((f"level {level} labels", ", ".join(told)))
    for name in checkpoint.network_files(config):
        paths = checkpoint.network_paths(folder, name)
        path = paths[0]
        if missing := [path for path in paths if not path.exists()]:
            rows.append((name, "missing" if missing[0] == path else f"{missing[0]}, which has part of it, is missing"))
            continue
        parameters, dtypes = 0, set()
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118
                    part = file.get_slice(key)
                    count = 1
                    for size in part.get_shape():
                        count *= size
                    parameters += count
                    dtypes.add(part.get_dtype())
        except Exception as error:
            rows.append((name, f"cannot be read: {error}"))
            continue
        size = path.stat().st_size / 1e6
        rest = f", the others in {paths[1]}" if len(paths) > 1 else ""
        rows.append((name, f"{parameters:,} parameters in {', '.join(sorted(dtypes))}, {size:.1f} MB{rest}"))
    report(rows)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
