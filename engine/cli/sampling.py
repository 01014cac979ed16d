"""The commands that sample: `sample`, `continue`, `upsample` and `resume`."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..stopping import Stopped, end_at_once, resume_command
from .labels import as_in, given_labels, told
from .options import DRAFT_OPTION, PATH, REPORT_OPTIONS, Settings, sampling_options, shared_help, with_options
from .terminal import Command, ProgressBar, check_model, load_model, new_file, report

if TYPE_CHECKING:
    from torch import Tensor

    from ..jukebox import Jukebox
    from ..sampler import SamplingParams
    from .prompts import Given


_ITEM = click.option(
    "--item", type=int, metavar="N", help="Of several pieces this one, the first is 0.  [default: all]"
)


@click.command(cls=Command, short_help="Sample music from nothing.")
@click.argument("out", default="out.wav")
@click.option("--seconds", type=float, default=10.0, show_default=True)
@sampling_options
@shared_help
def sample(out: str, settings: Settings) -> None:
    """Sample music from nothing into OUT (out.wav)."""
    _sample(out, settings, None)


@click.command("continue", cls=Command, short_help="Go on from audio, a run or codes.")
@click.argument("prompt", type=PATH)
@click.argument("out")
@click.option("--seconds", type=float, required=True, help="Length of the result, the prompt included.")
@click.option("--prompt-seconds", type=float, help="Go on from only so much of the prompt.")
@_ITEM
@sampling_options
@shared_help
def continue_(prompt: Path, out: str, prompt_seconds: float | None, item: int | None, settings: Settings) -> None:
    """Go on from PROMPT, which opens OUT.

    PROMPT is an audio file of any rate and number of channels, a run directory, a codes file (.safetensors), or the
    original's data.pth.tar.
    """
    from . import prompts

    settings = as_in(settings, prompt)
    seconds = settings.seconds or 0.0
    _sample(out, settings, lambda model: prompts.prompt(model, prompt, item, prompt_seconds, seconds, settings.level))


@click.command(cls=Command, short_help="Sample the finer levels of given codes.")
@click.argument("codes", type=PATH)
@click.argument("out")
@click.option("--seconds", type=float, help="Length of the result.  [default: what the codes cover]")
@click.option("--from-level", type=int, help="Keep this level and those above.  [default: the coarsest given]")
@_ITEM
@sampling_options
@shared_help
def upsample(codes: Path, out: str, from_level: int | None, item: int | None, settings: Settings) -> None:
    """Sample the levels below those of CODES anew.

    CODES is a codes file (.safetensors), a run directory, or the original's data.pth.tar.
    """
    from . import prompts

    settings = as_in(settings, codes)
    keep = partial(prompts.upper_codes, from_level=from_level, level=settings.level, seconds=settings.seconds)
    _sample(out, settings, lambda model: keep(model, codes, item))


@click.command(cls=Command, short_help="Go on with an interrupted run.")
@click.argument("run", type=PATH)
@click.option("--output", type=PATH, metavar="OUT", help="Instead of the file that the run was begun for.")
@click.option("--overwrite", is_flag=True, help="Replace OUT.")
@click.option("--model", metavar="NAME|FOLDER", help="Where the run's model is now, if it has moved.")
@DRAFT_OPTION
@with_options(*REPORT_OPTIONS)
def resume(
    run: Path,
    output: Path | None,
    overwrite: bool,
    model: str | None,
    draft: str | None,
    threads: int | None,
    plot: Path | None,
    plot_beside: Path | None,
    quiet: bool,
) -> None:
    """Go on with the interrupted or killed run in the directory RUN.

    The result is that of an undisturbed run, byte for byte (but for ogg's serial number).
    """
    from ..audio import check_output, output_files
    from ..jukebox import Jukebox
    from ..runs import Run
    from ..threads import take_threads

    request = Run.open(run).request
    if output:
        for path in output_files(check_output(output), request.params.num_samples):
            new_file(path, overwrite)
    else:
        output = Path(request.output) if request.output else None
    if output is None:
        raise ValueError(f"{run} was begun without an output file: name one with --output")
    check_output(output)
    _check_plot(plot, plot_beside, overwrite)
    if draft is not None:
        check_model(draft)
    take_threads(threads)
    started = time.monotonic()
    end_at_once(lambda: _go_on(run))
    with ProgressBar(quiet) as bar:
        try:
            result = Jukebox.resume(run, bar, model, draft)
        except KeyboardInterrupt as interrupt:
            raise Stopped(interrupt, _go_on(run)) from None
    wall = time.monotonic() - started
    with _codes_are_safe(run):
        files = result.save(output)
    _draw(plot, plot_beside, result.audio, result.sample_rate, output)
    report(
        [
            ("wrote", ", ".join(map(str, files))),
            ("audio", _audio_text(result.audio.shape[0], result.audio.shape[1] / result.sample_rate)),
            ("wall", f"{wall:.2f} s since it was resumed"),
            (
                "decoder",
                _decoder_text(request.backend, request.device, request.dtype)
                + _by_drafts(draft, request.backend, request.params),
            ),
            ("seed", str(request.params.seed)),
            ("run", str(run)),
        ]
    )


def _sample(out: str, settings: Settings, give: Callable[[Jukebox], Given] | None) -> None:
    from ..sampler import SamplingParams
    from .sharing import own_share

    out, settings, share = own_share(out, settings)
    params = SamplingParams(
        seconds=settings.seconds,
        seed=settings.seed,
        num_samples=1 if settings.samples is None else settings.samples,
        first_item=settings.first_item,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        hop_fraction=settings.hop_fraction,
        batch_size=settings.batch_size,
        level=settings.level,
        segments=settings.segments,
        labels=given_labels(settings),
    )
    output, run = _check_output(out, settings, params.num_samples)
    if run:
        made = _made(run)
        end_at_once(lambda: "; nothing is saved yet" if _made(run) == made else _go_on(run))
    model = settings.model or "demo"
    jukebox = load_model(model, settings.device, settings.dtype, settings.backend, settings.threads, settings.draft)
    given = give(jukebox) if give else None
    if given:
        if share:
            given = given.of(share)
        if settings.samples is None:
            params = dataclasses.replace(params, num_samples=max(map(len, given.codes)))
            _check_output(out, settings, params.num_samples)
        if params.seconds is None and given.samples is not None:
            params = dataclasses.replace(params, seconds=given.samples / jukebox.sample_rate)
    if settings.stream and params.num_samples > 1:
        raise ValueError("--stream is for one piece: --samples 1")

    if not settings.quiet and sys.stderr.isatty():
        click.echo(f"{model}: {jukebox.backend.name} decoder on {jukebox.device}", err=True)
    started = time.monotonic()
    with ProgressBar(settings.quiet) as bar:
        try:
            audio = (_streamed if settings.stream else _sampled)(jukebox, params, given, settings, output, run, bar)
        except KeyboardInterrupt as interrupt:
            raise Stopped(interrupt, _go_on(run) if bar.started else "") from None
    wall = time.monotonic() - started
    files = [] if output is None else [output]
    if output and audio is not None and not settings.stream:
        from ..audio import write_audio

        with _codes_are_safe(run):
            files = write_audio(output, audio, jukebox.sample_rate)
    if audio is not None:
        _draw(settings.plot, settings.plot_beside, audio, jukebox.sample_rate, output)

    samples = _length(params, jukebox)
    new = params.num_samples * (samples - (given.heard if given else 0)) / jukebox.sample_rate
    decoder = _decoder_text(jukebox.backend.name, str(jukebox.device), str(jukebox.dtype).removeprefix("torch."))
    rows = [
        ("wrote", ", ".join(map(str, files)) or "stdout"),
        *([("given", given.text)] if given else []),
        *([("told", told(params.labels))] if any(prior.labels for prior in jukebox.config.priors) else []),
        ("audio", _audio_text(params.num_samples, samples / jukebox.sample_rate)),
        ("wall", f"{wall:.2f} s: {new / wall:.3g}x real time"),
        ("decoder", decoder + _by_drafts(settings.draft, jukebox.backend.name, params)),
        ("seed", str(params.seed)),
        *([("run", str(run))] if run else []),
    ]
    report(rows, err=output is None)


def _decoder_text(backend: str, device: str, dtype: str) -> str:
    # Whatever the prior's dtype, native-int8 has weights in int8, and keys and values in FP16.
    return f"{backend} on {device}" + (f" in {dtype}" if backend != "native-int8" else "")


def _by_drafts(draft: str | None, backend: str, params: SamplingParams) -> str:
    from ..decoder import BACKENDS

    if not draft:
        return ""
    most = next(each.drafted_items for each in BACKENDS if each.name == backend)
    together = min(params.batch_size, params.num_samples * params.segments)
    return f", drafts by {draft}" if together <= most else f"; {draft} drafts for {most} pieces at most"


def _go_on(run: Path | None) -> str:
    return f"; go on with: {resume_command(run)}" if run else ""


def _made(run: Path) -> tuple[int, int] | None:
    """Tells the run that stands there from the next that is made in its place; None where there is none."""
    try:
        status = (run / "request.json").stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _audio_text(items: int, seconds: float) -> str:
    return f"{seconds:.2f} s" if items == 1 else f"{items} pieces of {seconds:.2f} s"


def _check_output(out: str, settings: Settings, items: int) -> tuple[Path | None, Path | None]:
    """The output file (None for stdout) and the run directory, checked before anything is sampled."""
    from ..audio import check_output, output_files

    _check_plot(settings.plot, settings.plot_beside, settings.overwrite)
    if out == "-":
        if not settings.stream:
            raise ValueError("OUT `-` is stdout: that needs --stream")
        output, run = None, settings.run
    else:
        output = check_output(out)
        run = settings.run or output.with_suffix(".run")
    if settings.stream and output and output.suffix.lower() != ".wav":
        raise ValueError(f"{output}: --stream writes .wav only")
    if run and (run / "request.json").exists() and not settings.overwrite:
        raise ValueError(
            f"{run} holds a run already: go on with `{resume_command(run)}`, "
            "replace it with --overwrite, or give another OUT or --run"
        )
    for path in output_files(output, items) if output else ():
        if run and path.resolve() in (run.resolve(), *run.resolve().parents):
            raise ValueError(f"--run {run} would be where {path} is to be written: give the run's folder another name")
        new_file(path, settings.overwrite)
    return output, run


def _length(params: SamplingParams, jukebox: Jukebox) -> int:
    """Of the result, in samples."""
    assert params.seconds is not None
    return max(1, round(params.seconds * jukebox.sample_rate))


def _sampled(
    jukebox: Jukebox,
    params: SamplingParams,
    given: Given | None,
    settings: Settings,
    output: Path | None,
    run: Path | None,
    bar: ProgressBar,
) -> Tensor | None:
    recorded = str(output.resolve()) if output else None
    options = {"order": settings.order, "run_dir": run, "overwrite": settings.overwrite}
    return jukebox.sample(params, given.codes if given else None, **options, output=recorded, progress=bar).audio


def _streamed(
    jukebox: Jukebox,
    params: SamplingParams,
    given: Given | None,
    settings: Settings,
    output: Path | None,
    run: Path | None,
    bar: ProgressBar,
) -> Tensor | None:
    """Write the audio while it grows; it is only kept to be drawn."""
    import torch

    from ..audio import wav_header, wav_samples

    codes = given.codes if given else None
    recorded = str(output.resolve()) if output else None
    chunks = jukebox.stream(params, codes, run_dir=run, overwrite=settings.overwrite, output=recorded, progress=bar)
    parts = []
    # The first chunk comes before the file is touched: by then the request is known to be good.
    first = next(chunks)
    with output.open("wb") if output else open(sys.stdout.fileno(), "wb", closefd=False) as file:

        def write(content: bytes) -> None:
            try:
                file.write(content)
                file.flush()
            except OSError as error:
                # What Python holds back of it would fail once more where the file is closed.
                file.raw.close()
                saved = f"; the codes so far are saved: `{resume_command(run)}`" if run else ""
                saved += " --output FILE" if run and not output else ""
                raise ValueError(f"cannot write to {output or 'stdout'}: {error.strerror}{saved}") from None

        write(wav_header(_length(params, jukebox), jukebox.sample_rate))
        for chunk in itertools.chain([first], chunks):
            write(wav_samples(chunk[0]))
            if settings.plot:
                parts.append(chunk)
    return torch.cat(parts, dim=1) if parts else None


@contextmanager
def _codes_are_safe(run: Path | None) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if not run:
            raise
        hint = f"all codes are saved: mend that and run `{resume_command(run)}`"
        raise ValueError(f"{error}; {hint}") from None
    except KeyboardInterrupt as interrupt:
        raise Stopped(interrupt, _go_on(run)) from None


def _check_plot(plot: Path | None, beside: Path | None, overwrite: bool) -> None:
    if plot is None:
        if beside:
            raise ValueError("--plot-beside goes with --plot PNG")
        return
    from ..plot import check_plot

    check_plot(plot)
    new_file(plot, overwrite)
    if beside and not beside.is_file():
        raise ValueError(f"cannot read audio from {beside}: no such file")


def _draw(plot: Path | None, beside: Path | None, audio: Tensor, sample_rate: int, output: Path | None) -> None:
    if plot is None:
        return
    from ..audio import read_audio
    from ..plot import plot_mel

    name = output.name if output else "stdout"
    panels: Sequence[tuple[str, Tensor]] = [
        (name if len(audio) == 1 else f"{name}, {item}", samples) for item, samples in enumerate(audio)
    ]
    if beside:
        panels = [*panels, (beside.name, read_audio(beside, sample_rate)[0, : audio.shape[1]])]
    plot_mel(plot, panels, sample_rate)
