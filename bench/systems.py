"""The paper's seven systems: what each prior is worth on held-out songs, and what its samples are like.

    python bench systems --work runs/demo-stack [--seeds 1 2 3 --samples 34 --json bench/results/systems.jsonl]

Held-out bits per code, agreement with the teacher and parameters are of each level that was trained. Samples are drawn
anew for each seed (`samples.py` says from what): their Frechet distance to the training songs, the codes in use at the
top, and with `--classifier` the mood they convey (`fastjukebox-train valence-train` makes one). A distance from so few
patches is too large, by about as much for all; the corpus's own pieces show how large.

`--audio FOLDER` writes a clip of every system, whole and of the top level alone, as MP3 for the report.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import soundfile
import torch

from ..distill import evaluation, frechet
from ..distill.presets import PRESETS
from ..distill.systems import SYSTEMS
from ..distill.work import Work
from ..engine.sampler import SamplingParams
from .harness import Rows, add_options
from .samples import CORPUS, Pieces, codes, model, sampled
from .samples import reference as training_songs


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_options(parser)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3], help="of samples; none: no samples")
    parser.add_argument("--systems", choices=list(SYSTEMS), nargs="+", default=list(SYSTEMS))
    parser.add_argument("--suffix", default="", help="of the systems' names, to tell one work from another")
    parser.add_argument("--windows", type=int, default=4, help="of each held-out song; 0: only samples")
    parser.add_argument("--audio", type=Path, help="write MP3 files for the report there")
    parser.add_argument("--clip-seconds", type=float, default=5.0, help="their length")
    add_options(parser)
    options = parser.parse_args(arguments)
    work = opened(options)
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
    pieces = pieces_of(options)
    reference: list[Any] = []

    def distance(files: Sequence[Path]) -> float:
        if not reference:
            songs = training_songs(work, pieces)
            reference.append(frechet.statistics(frechet.embed_files(songs, frechet.EmbeddingConfig())))
        own = frechet.statistics(frechet.embed_files(files, frechet.EmbeddingConfig()))
        return frechet.gaussian_distance(own, reference[0])

    for seed in options.seeds:
        # What an upper level's codes sound like is not to be compared with the songs themselves.
        for name in (*(CORPUS[1:] if pieces.level else CORPUS), *trained):
            rows.add(
                f"{name}{options.suffix} samples seed {seed}",
                lambda n=name, s=seed: (
                    listened(work, n, s, pieces, distance, options.classifier) | {"system": n + options.suffix}
                ),
                lambda figures: f"Frechet distance {figures['frechet']:.2f}",
            )
    return rows.status


def add_work_options(parser: argparse.ArgumentParser) -> None:
    """What the benchmarks that listen take."""
    defaults = Pieces()
    parser.add_argument("--work", type=Path, required=True, help="of `fastjukebox-train stack`")
    parser.add_argument("--preset", choices=list(PRESETS), default="demo")
    parser.add_argument("--samples", type=int, default=defaults.samples, help="pieces for a seed")
    parser.add_argument("--audio-seconds", type=float, default=defaults.audio_seconds)
    parser.add_argument("--top-p", type=float, nargs="+", default=defaults.top_p, help="per level, the finest first")
    parser.add_argument("--level", type=int, default=defaults.level, help="that is decoded; the top one is quick")
    parser.add_argument("--backend", default=defaults.backend, help="the decoder of the pieces")
    parser.add_argument("--classifier", type=Path, help="folder that `fastjukebox-train valence-train` wrote")


def opened(options: argparse.Namespace) -> Work:
    return Work(options.work, options.preset, device=torch.device(options.device))


def pieces_of(options: argparse.Namespace) -> Pieces:
    return Pieces(options.samples, options.audio_seconds, tuple(options.top_p), options.level, options.backend)


def _bits(figures: dict[str, Any]) -> str:
    kl = f", KL {figures['kl']:.3f} bits" if "kl" in figures else ""
    return f"{figures['bits']:.3f} bits per code{kl}"


def listened(
    work: Work, name: str, seed: int, pieces: Pieces, distance: Any, classifier: Path | None
) -> dict[str, Any]:
    """The pieces of one seed."""
    files = sampled(work, name, seed, pieces)
    figures: dict[str, Any] = {
        "system": name,
        "seed": seed,
        "samples": pieces.samples,
        "audio_seconds": pieces.audio_seconds,
        "top_p": pieces.top_p,
        "decoded_level": pieces.level,
        "backend": pieces.backend,
        "frechet": distance(files),
    }
    if name not in CORPUS:
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
