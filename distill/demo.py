"""The demo stack from nothing: render the corpus, train the VQ-VAE level by level, encode, train the priors, write the
checkpoint folder and its model card.

    python -m fastjukebox.distill.demo --out engine/demo --seed 0

A stage is done when its figures, `WORK/STAGE.json`, exist; run the command again and it goes on where it was stopped.
With `--jobs` 2, stages that do not need each other run side by side, one thread each: on small networks that is faster
than two threads per stage.
"""

from __future__ import annotations

import json
import multiprocessing
import shlex
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import click
import torch

from ..engine import checkpoint
from ..engine.prior import Prior
from ..engine.vqvae import VQVAE
from . import card, dataset
from .prior import load_averaged, train_prior
from .sizes import PRESETS, DemoSizes, with_budget
from .stage import write_json
from .vqvae import load_level, train_level


def stages(sizes: DemoSizes) -> dict[str, tuple[str, ...]]:
    """Every stage with those it needs. The top level comes first: its prior takes longest."""
    needs: dict[str, tuple[str, ...]] = {"audio": ()}
    levels = range(sizes.config.vqvae.levels - 1, -1, -1)
    for level in levels:
        needs[f"vqvae_{level}"] = ("audio",)
        needs[f"codes_{level}"] = (f"vqvae_{level}",)
    for level in levels:
        upper = (f"codes_{level + 1}",) if level + 1 < sizes.config.vqvae.levels else ()
        needs[f"prior_{level}"] = (f"codes_{level}", *upper)
    return needs


def run_stage(name: str, sizes: DemoSizes, work: Path, seed: int) -> dict[str, Any]:
    """Run one stage whose needs are done; returns its figures and writes them to `WORK/NAME.json`."""
    started = time.monotonic()
    kind, _, number = name.partition("_")
    level = int(number) if number else 0
    figures: dict[str, Any] = {}
    if kind == "audio":
        rate = sizes.config.vqvae.sample_rate
        dataset.write_audio(work / "audio.npy", max(sizes.songs), sizes.seconds, rate, seed)
    elif kind == "vqvae":
        audio = dataset.read_audio(work / "audio.npy")
        crops = dataset.AudioCrops(audio, sizes.crop, sizes.held_out, seed)
        budget, settings = sizes.vqvae_budgets[level], sizes.vqvae[level]
        config = sizes.config.vqvae
        _, progress, figures = train_level(work / f"{name}.pt", config, level, crops, budget, settings, seed, _log)
        figures |= {"steps": progress.step, "minutes": progress.seconds / 60}
    elif kind == "codes":
        vqvae = _trained_vqvae(sizes, work, (level,))
        audio = dataset.read_audio(work / "audio.npy")
        dataset.write_codes(work / f"{name}.npy", vqvae, level, audio, sizes.songs[level])
    else:
        config = sizes.config.priors[level]
        codes = dataset.read_codes(work / f"codes_{level}.npy")
        upper = dataset.read_codes(work / f"codes_{level + 1}.npy") if config.conditioner else None
        ratio = config.conditioner.upper_ratio if config.conditioner else 1
        windows = dataset.CodeWindows(codes, upper, config.context_len, ratio, sizes.held_out, seed)
        budget, settings = sizes.prior_budgets[level], sizes.priors[level]
        prior, progress, figures = train_prior(work / f"{name}.pt", config, windows, budget, settings, seed, _log)
        figures["parameters"] = sum(parameter.numel() for parameter in prior.parameters())
        figures |= {"steps": progress.step, "minutes": progress.seconds / 60}
    figures.setdefault("minutes", (time.monotonic() - started) / 60)
    write_json(work / f"{name}.json", figures)
    _log(f"{name}: done  {json.dumps(figures)}")
    return figures


def _log(line: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')} {line}")


def _trained_vqvae(sizes: DemoSizes, work: Path, levels: tuple[int, ...]) -> VQVAE:
    vqvae = VQVAE(sizes.config.vqvae)
    for level in levels:
        load_level(work / f"vqvae_{level}.pt", vqvae, level)
    return vqvae.eval().requires_grad_(False)


def _run_in_process(name: str, sizes: DemoSizes, work: Path, seed: int, threads: int) -> None:
    torch.set_num_threads(threads)
    run_stage(name, sizes, work, seed)


def run_all(sizes: DemoSizes, work: Path, seed: int, jobs: int, threads: int, only: tuple[str, ...] = ()) -> None:
    """Run the stages that are not done, each as soon as its needs are met, at most `jobs` at a time.

    Raises:
        click.ClickException: a stage failed; those that run beside it are stopped first.
    """
    needs = stages(sizes)
    unknown = sorted(set(only) - set(needs))
    if unknown:
        raise click.BadParameter(f"no stage {', '.join(unknown)}; there are {', '.join(needs)}")
    work.mkdir(parents=True, exist_ok=True)
    done = {name for name in needs if (work / f"{name}.json").exists()}
    waiting = [name for name in needs if name not in done and (not only or name in only)]
    running: dict[str, BaseProcess] = {}
    context = multiprocessing.get_context("spawn")
    try:
        while waiting or running:
            ready = [name for name in waiting if done.issuperset(needs[name])]
            if not ready and not running:
                raise click.ClickException(f"{waiting[0]} needs {', '.join(sorted(set(needs[waiting[0]]) - done))}")
            if jobs == 1 and ready:
                waiting.remove(ready[0])
                run_stage(ready[0], sizes, work, seed)
                done.add(ready[0])
                continue
            for name in ready[: jobs - len(running)]:
                waiting.remove(name)
                running[name] = context.Process(target=_run_in_process, args=(name, sizes, work, seed, threads))
                running[name].start()
            time.sleep(0.5)
            for name, process in list(running.items()):
                if process.exitcode is None:
                    continue
                del running[name]
                if process.exitcode:
                    raise click.ClickException(
                        f"{name} ended with exit code {process.exitcode}; see its messages above"
                    )
                done.add(name)
    finally:
        for process in running.values():
            process.terminate()


def export(sizes: DemoSizes, work: Path, out: Path, seed: int, command: str) -> None:
    """Write config.json, the networks in FP16 and CARD.md from finished stages."""
    vqvae = _trained_vqvae(sizes, work, tuple(range(sizes.config.vqvae.levels)))
    checkpoint.save_config(out, sizes.config)
    checkpoint.save_network(out / checkpoint.VQVAE_FILE, vqvae)
    for level, config in enumerate(sizes.config.priors):
        prior = Prior(config)
        load_averaged(work / f"prior_{level}.pt", prior)
        checkpoint.save_network(out / checkpoint.prior_file(level), prior)
    figures = {name: json.loads((work / f"{name}.json").read_text()) for name in stages(sizes)}
    (out / "CARD.md").write_text(card.render(sizes, figures, seed, command, out))


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Checkpoint folder to write.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/demo-stack"), show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--preset", type=click.Choice(list(PRESETS)), default="demo", show_default=True)
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="Stages at a time.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads of each stage.")
@click.option("--minutes", type=(str, float), multiple=True, help="STAGE MINUTES: another time limit for a stage.")
@click.option("--steps", type=(str, int), multiple=True, help="STAGE STEPS: another step limit for a stage.")
@click.option("--only", multiple=True, help="Run only this stage, and write no checkpoint; may be repeated.")
def main(
    out: Path,
    work: Path,
    seed: int,
    preset: str,
    jobs: int,
    threads: int,
    minutes: tuple[tuple[str, float], ...],
    steps: tuple[tuple[str, int], ...],
    only: tuple[str, ...],
) -> None:
    """Train the demo stack and write it to OUT."""
    changes: dict[str, dict[str, float]] = {}
    for name, value in minutes:
        changes.setdefault(name, {})["minutes"] = value
    for name, count in steps:
        changes.setdefault(name, {})["steps"] = count
    try:
        sizes = with_budget(PRESETS[preset], changes)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    torch.set_num_threads(threads)
    run_all(sizes, work, seed, jobs, threads, only)
    if not only:
        # The folders are this machine's affair.
        limits = [
            str(word)
            for option, pairs in (("--minutes", minutes), ("--steps", steps))
            for pair in pairs
            for word in (option, *pair)
        ]
        command = ["python", "-m", "fastjukebox.distill.demo", "--out", "DIR", "--seed", str(seed), "--preset", preset]
        export(sizes, work, out, seed, shlex.join([*command, *limits]))


if __name__ == "__main__":
    main()
