"""The tables of what systems and their samples are worth: records, one per row, to cells; see `table_rows.py`."""

from __future__ import annotations

from statistics import mean

import torch

from ..distill.frechet import EmbeddingConfig, embed
from ..distill.systems import SYSTEMS
from .cells import NONE, Record, Table, listed, over_seeds, table_of
from .samples import CORPUS

CLASSES = ("AP", "DP", "AU", "DU")
# Fast Jukebox, Table 2: mean class scores in the order of CLASSES; its classifier's PR-AUC and ROC-AUC.
PAPER_TABLE_2 = {
    "corpus": (0.7354, 0.0743, 0.0973, 0.0989),
    "teacher-72": (0.3058, 0.1985, 0.3375, 0.1143),
    "plain-18": (0.2109, 0.2647, 0.4162, 0.0814),
    "student-18": (0.3444, 0.2165, 0.2476, 0.1292),
}
PAPER_CLASSIFIER = "0.505, 0.754"


def _by_system(records: list[Record]) -> list[tuple[str, list[Record]]]:
    known = (*CORPUS, *SYSTEMS)
    others = sorted({r["system"] for r in records if r.get("system") and r["system"] not in known})
    named = {name: [r for r in records if r.get("system") == name] for name in (*known, *others)}
    return [(name, found) for name, found in named.items() if found]


WORDS = {"corpus": "held-out songs", "codes": "held-out songs, from their codes"}


def _patches(records: list[Record]) -> list[str]:
    """How many patches the Fréchet distances are of; records that do not say it have pieces of a known length."""
    config, counts = EmbeddingConfig(), set()
    for r in records:
        if "patches" in r:
            counts.add(r["patches"])
        elif "samples" in r:
            silence = torch.zeros(round(r["audio_seconds"] * config.mel.sample_rate))
            counts.add(r["samples"] * len(embed(silence, config)))
    return [str(count) for count in sorted(counts)]


def _songs(records: list[Record]) -> list[str]:
    """Which songs the held-out pieces whose mood was judged come from."""
    said = set()
    for r in (r for r in records if r.get("system") in CORPUS and "valence" in r):
        if "songs" in r:
            heard = f", {r['songs_heard']} of which the classifier was trained on" if "songs_heard" in r else ""
            said.add(f"held-out pieces are of {r['songs']} songs{heard}")
        else:
            said.add(
                "held-out pieces are of songs held out of the priors, and the classifier was trained on most of them"
            )
    return sorted(said)


def systems(records: list[Record]) -> Table:
    measured = [r for r in records if "bits" in r]
    levels = sorted({r["level"] for r in measured}, reverse=True)
    rows = []
    columns = {"parameters": (1e-6, ".1f"), "steps": (1, "d")} | dict.fromkeys(("bits", "kl", "acceptance"), (1, ".2f"))
    for name, found in _by_system(records):
        of = {r["level"]: r for r in found if "bits" in r}
        cells = [WORDS.get(name, name)]
        for key, (unit, form) in columns.items():
            values = [of.get(level, {}).get(key) for level in levels]
            told = " / ".join(NONE if value is None else format(unit * value, form) for value in values)
            cells.append(told if any(value is not None for value in values) else NONE)
        cells.append(over_seeds([r["frechet"] for r in found if "frechet" in r], ".1f"))
        moods = [r["valence"] for r in found if "valence" in r]
        cells.append(" / ".join(f"{mean(mood[c] for mood in moods):.2f}" for c in CLASSES) if moods else NONE)
        rows.append(cells)
    header = (
        "M parameters",
        "steps",
        "bits per code",
        "KL to the teacher",
        "acceptance",
        "Fréchet",
        " / ".join(CLASSES),
    )
    counted = [f"levels {' / '.join(map(str, levels))}; bits, KL and acceptance on held-out songs"]
    samples = [r for r in records if "frechet" in r]
    if samples:
        counted.append("Fréchet distance of samples, mean ± deviation over seeds")
    if counts := _patches(samples):
        counted.append(
            f"it is of {' or '.join(counts)} patches of a second: too large for so few, by about as much for all"
        )
    command = "python bench systems --work WORK"
    fields = (("seeds", "seed"), ("samples", "samples"), ("audio-seconds", "audio_seconds"), ("level", "decoded_level"))
    for option, key in fields:
        if values := listed(samples, key):
            command += f" --{option} {' '.join(values)}"
    if any("valence" in r for r in samples):
        command += " --classifier VALENCE"
        counted += ["mood of samples, mean over seeds", *_songs(samples)]
    return table_of("systems", "The seven systems", ("system", *header), rows, f"`{command}`: {'; '.join(counted)}")


def table2(records: list[Record]) -> Table:
    rows = []
    for name, found in _by_system(records):
        moods = [mood for r in found for mood in r.get("valence_by_seed", [r["valence"]])]
        scores = (over_seeds([mood[c] for mood in moods]) for c in CLASSES)
        paper = " / ".join(f"{value:.3f}" for value in PAPER_TABLE_2[name]) if name in PAPER_TABLE_2 else NONE
        rows.append((WORDS.get(name, name), str(sum(r["samples"] for r in found)), *scores, paper))
    spread = ", mean ± deviation over seeds" if any("valence_by_seed" in r for r in records) else ""
    said = [f"`python bench table2`: mean class scores over samples{spread}; the paper's are {' / '.join(CLASSES)}"]
    kinds = {(r["audio_seconds"], r["decoded_level"]) for r in records if "decoded_level" in r}
    said += [f"pieces of {seconds:g} s, decoded from their codes of level {level}" for seconds, level in sorted(kinds)]
    said += _songs(records)
    for r in (r for r in records if "pr_auc" in r):
        ours = f"PR-AUC {r['pr_auc']:.3f}, ROC-AUC {r['roc_auc']:.3f}"
        said.append(f"the classifier on {r['held_out_songs']} held-out songs: {ours} (the paper's {PAPER_CLASSIFIER})")
    header = ("system", "samples", *CLASSES, "the paper's")
    return table_of("table2", "Table 2 of the paper, the mood that samples convey", header, rows, "; ".join(said))
