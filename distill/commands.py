"""The commands of `fastjukebox-train`. All of them work on a work folder (see work.py) and can be run again: what is
done stays, what was stopped goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from ..engine import version
from ..engine.cli.terminal import Commands, check_model
from ..engine.jukebox import model_folder
from ..engine.threads import take_threads
from . import GO_ON
from .audio_folder import HELD_OUT
from .dry_run import describe
from .export import export as write_export
from .given_teacher import GivenTeacher
from .parallel import device_name, own_device, processes
from .pipeline import is_done, run_all, stages
from .preset_file import DEFAULT_PRESET, PRESET_OF_GIVEN, begun_with
from .presets import PRESETS
from .settings import changed
from .systems import ALL, SERVED, SYSTEMS, TEACHER
from .trainer import TrainingStopped
from .work import NotTrained, Work

ABLATIONS = "Levels at which all seven systems are trained; elsewhere the teacher and both students."
Command = TypeVar("Command", bound=Callable[..., Any])


# As the engine's commands have it.
device_option = click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...")


def common(command: Command) -> Command:
    """The options that every command has."""
    options = (
        click.option("--work", "folder", type=click.Path(path_type=Path, file_okay=False), required=True,
                     help="Folder of the runs; made if it is not there."),
        click.option("--preset", type=click.Choice(list(PRESETS)),
                     help=f"Sizes and lengths.  [default: that of the folder; {DEFAULT_PRESET} of a new one, "
                          f"{PRESET_OF_GIVEN} with --teacher]"),
        click.option("--teacher", metavar="MODEL",
                     help="Of a new folder: a trained model, whose VQ-VAE and priors take the place of vqvae and "
                          f"{TEACHER}. Its sizes count, lengths are the preset's."),
        click.option("--seed", type=click.IntRange(min=0), help="[default: that of the folder, 0 of a new one]"),
        click.option("--set", "assignments", metavar="NAME=VALUE", multiple=True,
                     help="Change a setting of the preset, for all runs of the folder; may be repeated."),
        device_option,
        click.option("--threads", type=click.IntRange(min=1), help="Of the CPU.  [default: all cores]"),
        click.option("--sharded", is_flag=True, help="FSDP2: divide the network over the processes of torchrun."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def level_option(command: Command) -> Command:
    return click.option(
        "--level", "levels", type=click.IntRange(min=0), multiple=True, help="Only this level; may be repeated."
    )(command)


def system_option(names: list[str]) -> Callable[[Command], Command]:
    return click.option("--system", "name", type=click.Choice(names), required=True)


def audio_options(command: Command) -> Command:
    """A folder of audio in place of the corpus, and what is held out of it."""
    share = f"Share of the songs of --audio to measure on, one at least.  [default: {HELD_OUT}]"
    command = click.option("--held-out", type=click.FloatRange(0, 1, True, True), help=share)(command)
    folder = click.Path(path_type=Path, exists=True, file_okay=False)
    return click.option("--audio", type=folder, help="Folder of audio, nested as it is.")(command)


dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be trained, and train nothing.")


@contextlib.contextmanager
def opened(
    folder: Path,
    preset: str | None,
    teacher: str | None,
    seed: int | None,
    assignments: tuple[str, ...],
    device: str,
    threads: int | None,
    sharded: bool,
) -> Iterator[Work]:
    """The work folder, with the processes that torchrun started. What it is and what works on it is told on stderr."""
    take_threads(threads)
    own = own_device(device)
    with processes(own, sharded) as group:
        if teacher is not None:
            check_model(teacher)
        given = None if teacher is None else GivenTeacher(model_folder(teacher))
        known_preset, known_seed = begun_with(folder, PRESET_OF_GIVEN if given else DEFAULT_PRESET)
        preset, seed = known_preset if preset is None else preset, known_seed if seed is None else seed
        work = Work(folder, preset, seed, own, group, teacher=given)
        if assignments:
            work = dataclasses.replace(work, settings=changed(work.preset, assignments))
        if group.is_first:
            said = "".join(f", {name} {json.dumps(value)}" for name, value in work.changed_settings.items())
            said += f", teacher {work.teacher.folder}" if work.teacher else ""
            click.echo(f"{folder}: preset {preset}, seed {seed}{said}; on {device_name(own)}", err=True)
        yield work


def chosen(work: Work, levels: tuple[int, ...]) -> list[int]:
    """The levels asked for, or all; the top first. Raises click.BadParameter."""
    unknown = sorted(set(levels) - set(work.levels))
    if unknown:
        raise click.BadParameter(f"no level {unknown[0]}; there are {', '.join(map(str, sorted(work.levels)))}")
    return [level for level in work.levels if not levels or level in levels]


def tell(work: Work, name: str, level: int | None, state: str = "") -> None:
    """Say what would be done."""
    for line in [name] if level is None else describe(work, name, level):
        work.say(state + line)


def chosen_audio(work: Work, audio: Path | None, held_out: float | None) -> tuple[Path, float | int]:
    """The folder, and the share or number of its songs that is held out. Raises click.UsageError, NotTrained."""
    if audio is not None:
        return audio, HELD_OUT if held_out is None else held_out
    if held_out is not None:
        raise click.UsageError("--held-out is a share of --audio; of the corpus a fixed number is held out")
    if not work.has_corpus:
        state = "not complete" if work.corpus.exists() else "not there"
        raise NotTrained(f"{work.corpus} is {state}: give --audio FOLDER, or run `fastjukebox-train corpus` first")
    return work.corpus, work.preset.corpus.held_out


class _Commands(Commands):
    def hint(self, interrupt: KeyboardInterrupt) -> str:
        return "" if isinstance(interrupt, TrainingStopped) else GO_ON


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version(), message="fastjukebox %(version)s")
def train() -> None:
    """Train VQ-VAEs, teachers and students for fastjukebox. Start a command with torchrun to use several devices."""


@train.command()
@common
def corpus(**options: Any) -> None:
    """Render the procedural corpus to WORK/corpus."""
    with opened(**options) as work:
        work.say(f"{work.write_corpus()}: {work.preset.corpus.songs} songs")


@train.command()
@common
@audio_options
@level_option
@dry_run_option
def vqvae(audio: Path | None, held_out: float | None, levels: tuple[int, ...], dry_run: bool, **options: Any) -> None:
    """Train the VQ-VAE, level by level, on a folder of audio (default: WORK/corpus)."""
    with opened(**options) as work:
        for level in chosen(work, levels):
            if dry_run:
                tell(work, "vqvae", level)
                continue
            figures = work.figures("vqvae", level)
            # One that is done must have heard the audio that is named.
            if figures is None or audio is not None or held_out is not None:
                figures = work.train_vqvae(level, *chosen_audio(work, audio, held_out))
            work.say(f"vqvae level {level}: {json.dumps(figures)}")


@train.command()
@common
@audio_options
def encode(audio: Path | None, held_out: float | None, **options: Any) -> None:
    """Encode a folder of audio (default: WORK/corpus) to WORK/codes."""
    with opened(**options) as work:
        work.encode(*chosen_audio(work, audio, held_out))


def train_systems(name: str, levels: tuple[int, ...], dry_run: bool, options: dict[str, Any]) -> None:
    with opened(**options) as work:
        if not dry_run:
            work.say(work.codes().report())
        for level in chosen(work, levels):
            if dry_run:
                tell(work, name, level)
                continue
            if work.is_given(name) or not work.is_done(name, level):
                work.train_system(name, level)
            work.say(f"{name} level {level}: {json.dumps(work.figures(name, level))}")


@train.command()
@common
@system_option([name for name, system in SYSTEMS.items() if not system.teacher])
@level_option
@dry_run_option
def prior(name: str, levels: tuple[int, ...], dry_run: bool, **options: Any) -> None:
    """Train a teacher's priors, or those of a plain student without a teacher, on WORK/codes."""
    train_systems(name, levels, dry_run, options)


@train.command()
@common
@system_option([name for name, system in ALL.items() if system.teacher])
@level_option
@dry_run_option
def distill(name: str, levels: tuple[int, ...], dry_run: bool, **options: Any) -> None:
    """Train a student's priors towards its teacher's, one stage; `student-N` goes on with `student-N-layers`."""
    train_systems(name, levels, dry_run, options)


@train.command()
@common
@click.option("--system", "names", type=click.Choice(list(ALL)), multiple=True, help="May be repeated.")
@level_option
@click.option("--windows", type=click.IntRange(min=1), default=4, show_default=True, help="Of each held-out song.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Append the figures to this file, a line each.")
def eval(names: tuple[str, ...], levels: tuple[int, ...], windows: int, path: Path | None, **options: Any) -> None:
    """Held-out bits per code of the systems that are trained, and their agreement with the teacher."""
    from .evaluation import evaluate

    with opened(**options) as work:
        wanted = [
            (name, level)
            for level in chosen(work, levels)
            for name in names or ALL
            if names or work.is_done(name, level)
        ]
        if not wanted:
            raise NotTrained(f"nothing to measure: no system is trained in {work.folder} at the levels asked for")
        for name, level in wanted:
            figures = evaluate(work, name, level, windows)
            work.say(json.dumps(figures))
            if path and work.processes.is_first:
                with path.open("a") as file:
                    file.write(json.dumps(figures | {"preset": work.preset_name, "seed": work.seed}) + "\n")


@train.command()
@common
@system_option(list(ALL))
@level_option
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Checkpoint folder to write."
)
@click.option(
    "--base",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="An exported folder of the same work: files that are the same stay there.",
)
@click.option("--overwrite", is_flag=True, help="Replace the checkpoint in OUT; other files in it stay.")
def export(name: str, levels: tuple[int, ...], out: Path, base: Path | None, overwrite: bool, **options: Any) -> None:
    """Write a system's stack as a checkpoint folder, FP16 safetensors, for `fastjukebox sample --model`.

    Levels below those that it was trained at are student-18's, and with --level all others; in a folder begun with
    --teacher the teacher's.
    """
    with opened(**options) as work:
        own = chosen(work, levels)
        if work.processes.is_first:
            write_export(work, name, out, base, own, overwrite)
            priors = ", ".join(f"level {level} of {work.source(name, level, own)}" for level in work.levels)
            work.say(f"{out}: the stack of {name}: {priors}; try: fastjukebox sample --model {shlex.quote(str(out))}")


@train.command()
@common
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Markdown file to write.")
def card(out: Path, **options: Any) -> None:
    """Write the model card of all that is trained: data, commands, time, figures."""
    from .card import card as written

    with opened(**options) as work:
        if work.processes.is_first:
            out.write_text(written(work))
            work.say(str(out))


@train.command()
@common
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Runs side by side.")
@click.option("--ablations", type=click.Choice(["top", "all"]), default="top", show_default=True, help=ABLATIONS)
@dry_run_option
def stack(jobs: int, ablations: str, dry_run: bool, **options: Any) -> None:
    """Everything from nothing: corpus, VQ-VAE, codes, and the paper's seven systems."""
    threads = options["threads"] or 1
    with opened(**options) as work:
        if jobs > 1 and work.processes.count > 1:
            raise click.UsageError("--jobs starts processes of its own: leave it out under torchrun")
        systems = {
            level: tuple(SYSTEMS) if ablations == "all" or level == work.levels[0] else SERVED for level in work.levels
        }
        needs = stages(work, systems)
        if dry_run:
            for stage in needs:
                state = "done" if is_done(work, stage) else "to do"
                tell(work, stage.name, stage.level, f"{state:6} ")
            return
        run_all(work, needs, jobs, threads, work.say)
