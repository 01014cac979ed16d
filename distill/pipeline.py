"""A whole stack from nothing: every run with what it needs, each as soon as that is done, a few at a time."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from tqdm import tqdm

from ..engine.memory import is_out_of_memory
from ..engine.stopping import Interrupted, raise_when_stopped
from .systems import SYSTEMS
from .trainer import TrainingDiverged
from .work import Work


@dataclass(frozen=True)
class Stage:
    """One piece of work: "corpus", "codes", "vqvae" or a system's name, with its level where it has one."""

    name: str
    level: int | None = None

    def __str__(self) -> str:
        return self.name if self.level is None else f"{self.name} level {self.level}"


CODES = Stage("codes")


class StageFailed(RuntimeError):
    """A stage ended with an error, which stands above this message."""


def expected(error: BaseException) -> bool:
    """Whether a user can mend it."""
    return isinstance(error, (ValueError, OSError, ImportError, TrainingDiverged, StageFailed)) or is_out_of_memory(
        error
    )


def message(error: BaseException) -> str:
    """One line for an error that is expected."""
    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        text = (
            f"not enough memory; `--dry-run` tells how much is needed, and --sharded divides it ({text or 'no more'})"
        )
    return text


def stages(work: Work, systems: Mapping[int, tuple[str, ...]]) -> dict[Stage, tuple[Stage, ...]]:
    """Every stage with those it needs, in a good order, for the systems wanted at each level."""
    vqvae = [Stage("vqvae", level) for level in work.levels]
    needs: dict[Stage, tuple[Stage, ...]] = {Stage("corpus"): ()}
    needs |= {stage: (Stage("corpus"),) for stage in vqvae}
    needs[CODES] = tuple(vqvae)

    def add(name: str, level: int) -> None:
        for need in SYSTEMS[name].needs:
            add(need, level)
        needs.setdefault(Stage(name, level), (CODES, *(Stage(need, level) for need in SYSTEMS[name].needs)))

    for level in work.levels:
        for name in systems.get(level, ()):
            add(name, level)
    return needs


def is_done(work: Work, stage: Stage) -> bool:
    if stage.name == "corpus":
        return work.has_corpus
    if stage.name == "codes":
        return work.has_codes
    assert stage.level is not None
    return work.is_done(stage.name, stage.level)


def run_stage(work: Work, stage: Stage) -> None:
    """Do one stage whose needs are met."""
    if stage.name == "corpus":
        work.write_corpus()
    elif stage.name == "codes":
        work.encode(work.corpus)
    elif stage.level is None:
        raise ValueError(f"{stage.name} has one run per level")
    elif stage.name == "vqvae":
        work.train_vqvae(stage.level, work.corpus)
    else:
        work.train_system(stage.name, stage.level)


def _stop_with_parent() -> None:
    """Stop this process as a signal would when its parent ends, however that ends: two of a kind must not meet in one
    run folder."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def _in_process(folder: Path, preset: str, seed: int, device: str, threads: int, stage: Stage) -> None:
    _stop_with_parent()
    torch.set_num_threads(threads)
    try:
        raise_when_stopped()
        run_stage(Work(folder, preset, seed, torch.device(device)), stage)
    # The parent has a line for it.
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_code)
    except Exception as error:
        if not expected(error):
            raise
        tqdm.write(f"{stage}: {message(error)}", file=sys.stderr)
        sys.exit(2)


@contextlib.contextmanager
def _ignored_in_children() -> Iterator[None]:
    """Processes started meanwhile leave Ctrl-C to this one, which stops them."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run_all(
    work: Work,
    needs: Mapping[Stage, tuple[Stage, ...]],
    jobs: int = 1,
    threads: int = 1,
    say: Callable[[str], None] = print,
) -> None:
    """Run the stages that are not done, at most `jobs` at a time; where that is more than one, each in a process of its
    own with `threads` threads; codes are found with those of all.

    Raises:
        StageFailed: one failed; those that run beside it are stopped first, and go on when this is called again.
    """
    work.claim()
    done = {stage for stage in needs if is_done(work, stage)}
    # No process of torchrun begins before all have looked.
    work.processes.wait()
    waiting = [stage for stage in needs if stage not in done]
    running: dict[Stage, BaseProcess] = {}
    context = multiprocessing.get_context("spawn")
    try:
        while waiting or running:
            ready = [stage for stage in waiting if done.issuperset(needs[stage])]
            if jobs == 1:
                waiting.remove(ready[0])
                say(f"{ready[0]}: started")
                run_stage(work, ready[0])
                done.add(ready[0])
                continue
            for stage in ready[: jobs - len(running)]:
                waiting.remove(stage)
                say(f"{stage}: started")
                # All wait for the codes, which do not depend on the number of threads.
                own = threads * jobs if stage == CODES else threads
                settings = (work.folder, work.preset_name, work.seed, str(work.device), own, stage)
                running[stage] = context.Process(target=_in_process, args=settings)
                with _ignored_in_children():
                    running[stage].start()
            time.sleep(0.2)
            for stage, process in list(running.items()):
                if process.exitcode is None:
                    continue
                del running[stage]
                if process.exitcode:
                    raise StageFailed(
                        f"{stage} ended with exit code {process.exitcode}; run the command again to go on"
                    )
                say(f"{stage}: done")
                done.add(stage)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()
