"""Table 2 of the paper: the mood that samples convey, as mean class scores over at least 100 pieces of each system.

    python bench table2 --work runs/demo-stack --classifier runs/valence [--json bench/results/table2.jsonl]

The pieces are those of `bench systems` (drawn here where they are missing). The classifier is trained on the
corpus's own labels by `fastjukebox-train valence-train`, and judged on songs held out of that.
"""

from __future__ import annotations

import argparse
from typing import Any

from ..distill import valence
from ..distill.labels import read_quadrants, split
from ..distill.systems import TEACHER
from .harness import Rows, add_options
from .samples import CORPUS, sampled
from .systems import add_work_options, opened, pieces_of

# Those of the paper's table.
SHOWN = (*CORPUS, TEACHER, "plain-18", "student-18")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_options(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    add_options(parser)
    options = parser.parse_args(arguments)
    if not options.classifier:
        parser.error("--classifier is needed: make one with `fastjukebox-train valence-train`")
    work, pieces = opened(options), pieces_of(options)
    rows = Rows("table2", options)
    net = valence.load(options.classifier, options.device)

    def judged() -> dict[str, Any]:
        _, held_out = split(read_quadrants(work.corpus), valence.ValenceTraining().held_out, seed=0)
        return {"held_out_songs": len(held_out), **valence.report(net, held_out)}

    def scored(name: str) -> dict[str, Any]:
        files = [path for seed in options.seeds for path in sampled(work, name, seed, pieces)]
        figures = {"system": name, "samples": len(files), "audio_seconds": pieces.audio_seconds}
        figures |= {"decoded_level": pieces.level, "backend": pieces.backend}
        return figures | {"seeds": options.seeds, "valence": valence.scores(net, files)}

    rows.add("classifier", judged, lambda figures: f"ROC-AUC {figures['roc_auc']:.3f}, PR-AUC {figures['pr_auc']:.3f}")
    for name in SHOWN:
        rows.add(name, lambda n=name: scored(n), lambda figures: str(figures["valence"]))
    return rows.status


if __name__ == "__main__":
    raise SystemExit(main())
