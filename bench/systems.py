"""The paper's seven systems: what each prior is worth on held-out songs, and what its samples are like.

    python bench systems --work runs/demo-stack [--seeds 1 2 3 --samples 34 --json bench/results/systems.jsonl]

Held-out bits per code, agreement with the teacher and parameters are of each level that was trained. Samples are drawn
anew for each seed (`samples.py` says from what): their Frechet distance to the training songs, the codes in use at the
top, and with `--classifier` the mood they convey (`fastjukebox-train valence-train` makes one). A distance from so few
patches is too large, by about as much for all; the corpus's own pieces show how large, and the record says how many.

`--audio FOLDER` writes a clip of every system, whole and of the top level alone, as MP3 for the report. `--quick` is
one seed and one window of each held-out song.
"""

from __future__ import annotations

if not __package__:
    from by_path import run as run_again

    run_again(__file__)

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import soundfile
import torch

from ..distill import evaluation, frechet
from ..distill.systems import SYSTEMS
from ..distill.work import Work
from ..engine.sampler import SamplingParams
from .harness import Rows, add_options
from .options import amount, decoder, positive
from .samples import CORPUS, Pieces, Songs, codes, model, sampled, songs_of, unheard_by
from .samples import reference as training_songs


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_options(parser)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3], help="of samples; none: no samples")
    parser.add_argument("--systems", choices=list(SYSTEMS), nargs="+", default=list(SYSTEMS))
    parser.add_argument("--suffix", default="", help="of the systems' names, to tell one work from another")
    parser.add_argument("--windows", type=int, default=4, help="of each held-out song; 0: only samples")
    parser.add_argument("--audio", type=Path, help="write MP3 files for the report there")
    parser.add_argument("--clip-seconds", type=amount, default=5.0, help="their length")
    add_options(parser, rounds=None)
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.windows = options.seeds[:1], min(1, options.windows)
    work = opened(parser, options)
    rows = Rows("systems", options)
    for level in work.levels:
        for name in options.systems:
            if options.windows and work.is_done(name, level):
                rows.add(
                    f"{name}{options.suffix} level {level}",
                    lambda n=name, k=level: (
                        evaluation.evaluate(work, n, k, options.windows) | {"system": n + options.suffix}
                    ),
                    _bits,
                )
    trained = [name for name in options.systems if work.is_done(name, work.levels[0])]
    if options.audio:
        for name in trained:
            rows.add(f"{name} audio", lambda n=name: audio(work, n, options), lambda figures: "written")
    if not options.seeds:
        return rows.status
    # Of all held-out songs: a distance from few songs is large whatever they are.
    pieces = pieces_of(options)
    songs = songs_of(work, options.songs, unheard_by(options.classifier, options.songs))
    reference: list[torch.Tensor] = []

    def distance(files: Sequence[Path]) -> frechet.Frechet:
        config = frechet.EmbeddingConfig()
        if not reference:
            reference.append(frechet.embed_files(training_songs(work, pieces, songs), config))
        found = frechet.embed_files(files, config), reference[0]
        own, theirs = (frechet.statistics(embedded) for embedded in found)
        return frechet.Frechet(frechet.gaussian_distance(own, theirs), (len(found[0]), len(found[1])))

    for seed in options.seeds:
        # What an upper level's codes sound like is not to be compared with the songs themselves.
        for name in (*(CORPUS[1:] if pieces.level else CORPUS), *trained):
            rows.add(
                f"{name}{options.suffix} samples seed {seed}",
                lambda n=name, s=seed: (
                    listened(work, n, s, pieces, songs, distance, options.classifier) | {"system": n + options.suffix}
                ),
                lambda figures: f"Frechet distance {figures['frechet']:.2f}",
            )
    return rows.status


def add_work_options(parser: argparse.ArgumentParser) -> None:
    """What the benchmarks that listen take."""
    defaults = Pieces()
    parser.add_argument("--work", type=Path, required=True, help="of `fastjukebox-train stack`")
    parser.add_argument("--songs", type=Path, help="audio that the work was made from [default: WORK/corpus]")
    parser.add_argument("--samples", type=positive, default=defaults.samples, help="pieces for a seed")
    parser.add_argument("--audio-seconds", type=amount, default=defaults.audio_seconds)
    parser.add_argument("--top-p", type=float, nargs="+", default=defaults.top_p, help="per level, the finest first")
    parser.add_argument("--level", type=int, default=defaults.level, help="that is decoded; the top one is quick")
    parser.add_argument("--backend", type=decoder, default=defaults.backend, help="the decoder of the pieces")
    parser.add_argument("--classifier", type=Path, help="folder that `fastjukebox-train valence-train` wrote")


def opened(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Work:
    """The work, of the preset and seed that it was made with."""
    path = options.work / "preset.json"
    if not path.exists():
        parser.error(f"{options.work} is no work of `fastjukebox-train`: it has no {path.name}")
    if options.classifier and not options.classifier.is_dir():
        parser.error(f"{options.classifier} is no classifier of `fastjukebox-train valence-train`")
    made_with = json.loads(path.read_text())
    options.songs = options.songs or options.work / "corpus"
    try:
        return Work(options.work, made_with["preset"], made_with["seed"], torch.device(options.device))
    except ValueError as error:
        parser.error(str(error))


def pieces_of(options: argparse.Namespace) -> Pieces:
    return Pieces(options.samples, options.audio_seconds, tuple(options.top_p), options.level, options.backend)


def _bits(figures: dict[str, Any]) -> str:
    kl = f", KL {figures['kl']:.3f} bits" if "kl" in figures else ""
    return f"{figures['bits']:.3f} bits per code{kl}"


def listened(
    work: Work,
    name: str,
    seed: int,
    pieces: Pieces,
    songs: Songs,
    distance: Callable[[Sequence[Path]], frechet.Frechet],
    classifier: Path | None,
) -> dict[str, Any]:
    """The pieces of one seed."""
    files = sampled(work, name, seed, pieces, songs)
    found = distance(files)
    figures: dict[str, Any] = {
        "system": name,
        "seed": seed,
        "samples": pieces.samples,
        "audio_seconds": pieces.audio_seconds,
        "top_p": pieces.top_p,
        "decoded_level": pieces.level,
        "backend": pieces.backend,
        "frechet": found.distance,
        "patches": found.patches[0],
        "reference_patches": found.patches[1],
    }
    if name in CORPUS:
        figures |= songs.figures
    else:
        top = work.levels[0]
        figures |= evaluation.code_usage(codes(work, name, seed, pieces)[top], work.preset.config.vqvae.codebook_size)
        figures["levels"] = [level for level in work.levels if work.is_done(name, level)]
    if classifier:
        from ..distill import valence

        figures["valence"] = valence.scores(valence.load(classifier), files)
    return figures


def audio(work: Work, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """A clip as MP3: SYSTEM.mp3, and SYSTEM-top.mp3 from the same top codes alone."""
    jukebox, out = model(work, name), options.audio
    result = jukebox.sample(SamplingParams(seconds=options.clip_seconds, seed=1, top_p=tuple(options.top_p)))
    top = work.levels[0]
    whole = result.audio[0]
    alone = jukebox.decode(result.codes[top], top)[0, : len(whole)]
    out.mkdir(parents=True, exist_ok=True)
    for path, samples in ((out / f"{name}.mp3", whole), (out / f"{name}-top.mp3", alone)):
        soundfile.write(path, samples.clamp(-1, 1).numpy(), result.sample_rate, format="MP3")
    return {"system": name, "seed": 1, "audio_seconds": options.clip_seconds}


if __name__ == "__main__":
    raise SystemExit(main())
