"""The commands of `fastjukebox-train` that judge audio: mood, and distance from other audio."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from .commands import device_option, train
from .parallel import own_device

FOLDER = click.Path(path_type=Path, exists=True)


@train.command("valence-train")
@click.argument("labels", type=FOLDER)
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--steps", type=click.IntRange(min=1), help="[default: 600]")
@click.option("--preset", type=click.Choice(["demo", "tiny"]), default="demo", show_default=True)
@click.option("--codes", type=FOLDER, help="WORK/codes: the songs that priors hold out are held out here too.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@device_option
def valence_train(
    labels: Path, out: Path, steps: int | None, preset: str, codes: Path | None, seed: int, device: str
) -> None:
    """Train the mood classifier on LABELS, a corpus or a CSV file of path,quadrant (AP, DP, AU, DU), into OUT.

    Prints PR-AUC and ROC-AUC on held-out songs. Goes on where it was stopped.
    """
    from . import valence
    from .code_store import CodeStore
    from .labels import labels_file, names, read_quadrants

    budget = valence.DEMO_BUDGET if steps is None else dataclasses.replace(valence.DEMO_BUDGET, steps=steps)
    config, songs = valence.PRESETS[preset], read_quadrants(labels)
    also: set[Path] = set()
    if codes is not None:
        store = CodeStore(codes)
        also = {labels_file(labels).parent / store.songs[index].path for index in store.indices("held_out")}
        if missing := also - {song.path for song in songs}:
            raise ValueError(f"{codes} holds out {min(missing)}, which {labels} does not name")
    net, _, held_out = valence.train_valence(
        out / "run", songs, config, budget, valence.ValenceTraining(), seed, own_device(device), also
    )
    valence.save(net, out, seed, names(held_out, labels))
    click.echo(json.dumps({"held_out_songs": len(held_out), **valence.report(net, held_out)}))


@train.command("valence")
@click.argument("net", type=FOLDER)
@click.argument("folders", type=FOLDER, nargs=-1, required=True)
@device_option
def valence_scores(net: Path, folders: tuple[Path, ...], device: str) -> None:
    """Mean class scores of the audio in FOLDERS by the classifier in NET: rows of the paper's Table 2."""
    from .valence import load, scores

    classifier = load(net, own_device(device))
    for folder in folders:
        click.echo(json.dumps({"folder": str(folder), **scores(classifier, folder)}))


@train.command()
@click.argument("runs", type=FOLDER, nargs=-1, required=True)
@click.option("--codebook-size", type=click.IntRange(min=1), default=512, show_default=True)
def usage(runs: tuple[Path, ...], codebook_size: int) -> None:
    """How the codes of RUNS (run directories of `fastjukebox sample`, or safetensors files) use the codebook."""
    from ..engine.runs import load_codes
    from .evaluation import code_usage

    for run in runs:
        for level, codes in enumerate(load_codes(run / "codes.safetensors" if run.is_dir() else run)):
            if codes.numel() and int(codes.max()) >= codebook_size:
                raise click.BadParameter(f"{run}: code {int(codes.max())} needs a larger --codebook-size")
            if codes.numel():
                figures = code_usage(codes, codebook_size)
                click.echo(json.dumps({"run": str(run), "level": level, "codes": codes.numel(), **figures}))


@train.command()
@click.argument("first", type=FOLDER)
@click.argument("second", type=FOLDER)
@click.option("--fadtk", help="Also by Microsoft's fadtk with this network, where it is installed.")
def frechet(first: Path, second: Path, fadtk: str | None) -> None:
    """Frechet distance between the audio of two folders, on log-mel embeddings."""
    from .frechet import fadtk_distance, frechet_distance

    found = frechet_distance(first, second)
    figures: dict[str, object] = {"distance": found.distance, "patches": found.patches}
    if fadtk:
        figures[f"fadtk {fadtk}"] = fadtk_distance(first, second, fadtk)
    click.echo(json.dumps(figures))
