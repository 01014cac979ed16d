"""Speculative decoding (engine/speculative_decoder.py): milliseconds per code with drafts and without.

    python bench speculative [--pairs demo-72:demo-3 --width 2048 --batch 1 3 --backends native native-int8 --json FILE]
    python bench speculative --device cuda [--width 1920 --backends triton triton-int8]

A pair is a model and the one that drafts for it. How much drafts help depends on how many of them are right, which
needs trained networks, and on the width; so the bottom level's networks are widened by repeating their values
(widened.py): they draw the codes of the small ones. Codes are those of the second half of a window, after a prompt and
with conditions that the model itself has sampled, several items going on from the same; of every way they are compared
with those without drafts, or nothing is reported. Ways are timed by turns, ratios taken within rounds; with `--peer`
steps of `transformers` 4.57.6 as well, on the same weights and with the same logits, in FP32.
"""

from __future__ import annotations

if not __package__:
    from by_path import run as run_again

    run_again(__file__)

import argparse
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch

from ..engine import Jukebox, SamplingParams
from ..engine.decoder import LevelSampling, WindowTask, choose_backend
from ..engine.graph_decoder import GraphDecoder
from ..engine.patterns import Pattern
from ..engine.prior import Prior
from ..engine.speculative_decoder import CheckingDecoder, check_drafts, expect_drafts
from .harness import Rows, add_options, quantiles, rounds_of
from .options import decoder, positive, refuse
from .peers import TransformersDecoder, present
from .widened import widened

SEED = 3
PAIRS = ("demo-72:demo-3", "demo-72:demo", "demo:demo-3")
LENGTHS = (2, 4, 8, 16)
TEMPERATURE = 0.99


def usable(pair: str, width: int) -> None:
    """Raises ValueError where MODEL:DRAFT are no models, or cannot be widened so far."""
    model, _, draft = pair.partition(":")
    if not (model and draft):
        raise ValueError(f"{pair!r} is not MODEL:DRAFT")
    priors = [Jukebox.from_pretrained(name, "cpu").config.priors[0] for name in (model, draft)]
    check_drafts(priors[:1], priors[1:])
    for prior in priors:
        if width % prior.width:
            raise ValueError(f"width {width} is no multiple of {prior.width}")
        if prior.labels or not prior.conditioner:
            raise ValueError("for bottom levels with a conditioner and without labels")


@functools.cache
def window(model: str, device: torch.device) -> WindowTask:
    """A window's first half and condition, as the model samples them, of one item."""
    jukebox = Jukebox.from_pretrained(model, device, torch.float32)
    config = jukebox.config.priors[0]
    assert config.conditioner
    count = config.context_len // config.conditioner.upper_ratio
    seconds = count * jukebox.config.vqvae.samples_per_code(1) / jukebox.sample_rate
    upper = jukebox.sample(SamplingParams(seconds, seed=SEED, level=1)).codes[1][:, :count]
    small = jukebox.backend.build(jukebox.prior(0), 1)
    codes, items = torch.zeros(1, config.context_len, dtype=torch.long), torch.arange(1)
    sampling, cond = LevelSampling(TEMPERATURE), small.condition(upper.to(device))
    task = WindowTask(codes.to(device), 0, items.to(device), SEED, 0, 0, sampling, frame_cond=cond)
    small.prefill(task)
    start = config.context_len // 2 // config.row_len * config.row_len
    small.run(0, start)
    return replace(task, prompt_len=start)


def wide_decoder(name: str, width: int, device: torch.device, backend: str, batch: int) -> CheckingDecoder:
    prior = Jukebox.from_pretrained(name, "cpu").prior(0)
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    wide = widened(prior, width // prior.config.width).to(device, dtype)
    return cast("CheckingDecoder", choose_backend(backend, device, dtype).build(wide, batch))


def told(task: WindowTask, decoder: CheckingDecoder) -> WindowTask:
    """The task for a widened decoder, with its prompt."""
    assert task.frame_cond is not None
    times = decoder.prior.config.width // task.frame_cond.shape[-1]
    sampling = replace(task.sampling, temperature=TEMPERATURE * times)
    return replace(task, frame_cond=task.frame_cond.repeat(1, 1, times), sampling=sampling)


def caches(decoder: CheckingDecoder) -> list[Any]:
    """Those of its layers."""
    found = cast("Any", decoder).cache
    return found if isinstance(found, list) else found.layers


class Peer:
    """`transformers` on the weights of `prior`, some steps a turn.

    Raises:
        RuntimeError: its logits differ.
    """

    STEPS = 3

    @torch.inference_mode()
    def __init__(self, prior: Prior, task: WindowTask) -> None:
        assert task.frame_cond is not None
        self.pos, self.decoder = task.prompt_len, TransformersDecoder(prior, task.frame_cond)
        self.decoder.prefill(task.codes.clone(), self.pos)
        expected = prior(task.codes[:, : self.pos + 1], task.frame_cond[:, : self.pos + 1])[:, -1]
        error = ((self.decoder.logits(self.pos) - expected).abs().max() / expected.abs().max()).item()
        if error > 1e-4:
            raise RuntimeError(f"logits of transformers differ by {error:.2g} of the largest: no times are reported")
        self.pos += 1

    def turn(self) -> None:
        self.decoder.run(self.pos, self.pos + self.STEPS)
        self.pos += self.STEPS


def measure(
    model: str,
    draft: str,
    width: int,
    device: torch.device,
    backend: str,
    batch: int,
    codes: int,
    threads: int,
    rows: Rows,
    with_peer: bool = False,
) -> dict[str, Any]:
    task = window(model, device)
    assert task.frame_cond is not None
    items, cond = torch.arange(batch, device=device), task.frame_cond.repeat(batch, 1, 1)
    task = replace(task, codes=task.codes.repeat(batch, 1), items=items, frame_cond=cond)
    most_rows = choose_backend(backend, device, cond.dtype).drafts
    lengths = [length for length in LENGTHS if length * batch <= most_rows]
    # One to be timed alone.
    target, drafts, alone = (wide_decoder(name, width, device, backend, batch) for name in (model, draft, draft))
    expect_drafts(target, drafts, lengths)
    for each in (drafts, target, alone):
        each.prefill(told(task, each))
    # A row's first position: what is written from there on replaces nothing that is read but previous rows.
    start = task.prompt_len
    rewound = [
        (tensor, tensor.clone())
        for each in (target, drafts, alone)
        for pattern, cache in zip(each.prior.config.layer_patterns, caches(each), strict=True)
        if pattern is Pattern.PREVIOUS_ROW
        for tensor in (cache.keys, cache.values)
    ]
    stop = min(start + codes, task.codes.shape[1])
    right: dict[int, int] = {}

    @torch.inference_mode()
    def rewind() -> None:
        task.codes[:, start:] = 0
        for tensor, before in rewound:
            tensor.copy_(before)
        for each in (target, drafts, alone):
            if isinstance(each, GraphDecoder):
                each.codes[:, start:] = 0
                each.go_to(start)

    def with_drafts(length: int) -> None:
        right[length], _, _ = target.speculate(drafts, [start] * batch, stop, length, stop - start, threads)

    def checked(run: Callable[[], object]) -> Callable[[], object]:
        def runs() -> None:
            rewind()
            run()
            if not torch.equal(task.codes[:, start:stop], expected):
                raise RuntimeError("the codes are not those without drafts: no times are reported")

        return runs

    target.decode(start, stop, threads)
    expected = task.codes[:, start:stop].clone()
    ways: dict[str, Callable[[], object]] = {"plain": lambda: target.decode(start, stop, threads)}
    ways |= {f"drafts_{length}": lambda length=length: with_drafts(length) for length in lengths}

    def draft_alone() -> None:
        rewind()
        alone.decode(start, stop, threads)

    written = dict.fromkeys((*ways, "draft"), (stop - start) * batch)
    ways = {name: checked(run) for name, run in ways.items()} | {"draft": draft_alone}
    if with_peer:
        ways["transformers"] = Peer(target.prior, told(task, target)).turn
        written["transformers"] = Peer.STEPS * batch
    times = rounds_of(ways, device, rows.rounds)
    per_code = {name: [1e3 * taken / written[name] for taken in found] for name, found in times.items()}

    def times_as_fast(name: str, other: str) -> dict[str, float]:
        return quantiles([a / b for a, b in zip(per_code[other], per_code[name], strict=True)])

    drafted = [f"drafts_{length}" for length in lengths]
    ratios = {f"{name}_speedup": times_as_fast(name, "plain") for name in drafted}
    if with_peer:
        ratios |= {f"{name}_over_transformers": times_as_fast(name, "transformers") for name in ("plain", *drafted)}
    return {
        **{f"{name}_ms": quantiles(found) for name, found in per_code.items()},
        **ratios,
        "right": {str(length): count / written["plain"] for length, count in right.items()},
        "codes": stop - start,
        "batch": batch,
        "width": width,
        "depth": target.prior.config.depth,
        "draft_depth": drafts.prior.config.depth,
        "backend": backend,
        "rounds": rows.rounds,
    }


def say(f: dict[str, Any]) -> str:
    ways = (
        f"{f[f'drafts_{length}_speedup']['p50']:.2f}x by {length} ({100 * share:.0f} % right)"
        for length, share in f["right"].items()
    )
    peer = f", transformers {f['transformers_ms']['p50']:.1f} ms" if "transformers_ms" in f else ""
    return f"{f['plain_ms']['p50']:.2f} ms per code, draft {f['draft_ms']['p50']:.2f} ms{peer}; {', '.join(ways)}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), metavar="MODEL:DRAFT")
    parser.add_argument("--width", type=positive, default=2048)
    parser.add_argument(
        "--backends", nargs="+", type=decoder, help="[default: the native ones, on a GPU Triton's: FP16 and int8]"
    )
    parser.add_argument("--batch", nargs="+", type=positive, default=[1, 2, 4], help="items decoded together")
    parser.add_argument("--codes", type=positive, default=128)
    parser.add_argument("--peer", action="store_true", help="steps of transformers too")
    add_options(parser, rounds=5)
    parser.set_defaults(device="cpu")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    kind = "native" if device.type == "cpu" else "triton"
    options.backends = options.backends or [kind, f"{kind}-int8"]
    for backend in options.backends:
        if not backend.startswith(kind):
            parser.error(f"drafts on {device} are for the {kind} decoders, not for {backend}")
    refuse(parser, options.pairs, lambda pair: usable(pair, options.width))
    if options.quick:
        options.pairs, options.batch, options.codes = options.pairs[:1], options.batch[:1], min(options.codes, 48)
    if options.peer and device.type != "cpu":
        parser.error("--peer is for CPUs: it compares in FP32")
    with_peer = options.peer and "transformers" in present(None)
    rows = Rows("speculative", options)
    pairs = [pair.split(":", 1) for pair in options.pairs]
    for model, draft, backend, batch in (
        (*pair, backend, batch) for pair in pairs for backend in options.backends for batch in options.batch
    ):
        together = f", batch {batch}" if batch > 1 else ""
        rows.add(
            f"{model} by drafts of {draft}, width {options.width}{together}, {backend}",
            lambda model=model, draft=draft, backend=backend, batch=batch: measure(
                model, draft, options.width, device, backend, batch, options.codes, options.threads, rows, with_peer
            ),
            say,
            {"model": model, "draft": draft},
        )
    return rows.status


if __name__ == "__main__":
    raise SystemExit(main())
