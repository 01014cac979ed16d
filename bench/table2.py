"""Table 2 of the paper: the mood that samples convey, as mean class scores over at least 100 pieces of each system.

    python bench table2 --work runs/demo-stack --classifier runs/valence [--json bench/results/table2.jsonl]

The pieces are those of `bench systems` (drawn here where they are missing). The classifier is trained on the
corpus's own labels by `fastjukebox-train valence-train`, and judged on songs held out of that. The corpus's own pieces
are of songs held out of the priors and of the classifier where there are enough; the record says how many and, if need
be, how many of them the classifier was trained on. `--quick` is one seed.
"""

from __future__ import annotations

if not __package__:
    from by_path import run as run_again

    run_again(__file__)

import argparse
import statistics
from typing import Any

from ..distill import valence
from ..distill.systems import TEACHER
from .harness import Rows, Unavailable, add_options
from .samples import CORPUS, sampled, songs_of, unheard_by
from .systems import add_work_options, opened, pieces_of

# Those of the paper's table.
SHOWN = (*CORPUS, TEACHER, "plain-18", "student-18")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_options(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    add_options(parser, rounds=None)
    options = parser.parse_args(arguments)
    if not options.classifier:
        parser.error("--classifier is needed: make one with `fastjukebox-train valence-train`")
    if options.quick:
        options.seeds = options.seeds[:1]
    work, pieces = opened(parser, options), pieces_of(options)
    rows = Rows("table2", options)
    net = valence.load(options.classifier, options.device)
    unheard = unheard_by(options.classifier, options.songs)
    songs = songs_of(work, options.songs, unheard).new()

    def judged() -> dict[str, Any]:
        if unheard is None:
            raise Unavailable(f"the songs in {options.songs} have no labels to judge it by")
        return {"held_out_songs": len(unheard), **valence.report(net, unheard)}

    def scored(name: str) -> dict[str, Any]:
        found = [sampled(work, name, seed, pieces, songs) for seed in options.seeds]
        by_seed = [valence.scores(net, files) for files in found]
        figures = {"system": name, "samples": sum(map(len, found)), "audio_seconds": pieces.audio_seconds}
        figures |= {"decoded_level": pieces.level, "backend": pieces.backend, "seeds": options.seeds}
        figures |= songs.figures if name in CORPUS else {}
        # Each seed has as many pieces.
        scores = {mood: statistics.mean(of_seed[mood] for of_seed in by_seed) for mood in by_seed[0]}
        return figures | {"valence": scores, "valence_by_seed": by_seed}

    rows.add("classifier", judged, lambda figures: f"ROC-AUC {figures['roc_auc']:.3f}, PR-AUC {figures['pr_auc']:.3f}")
    for name in SHOWN:
        rows.add(name, lambda n=name: scored(n), lambda figures: str(figures["valence"]))
    return rows.status


if __name__ == "__main__":
    raise SystemExit(main())
