"""Time per sampled code, ours against two peers on the same weights, in one run on the same machine.

    python bench peers [--batch 1 4 16 --window 64 --json bench/results/peers.jsonl]

The peers: `transformers` 4.57.6 with its own cache, and `growing-cache`, sampling as one writes it first in plain
PyTorch (growing_cache.py). All compute in FP32 from the middle of a window, sampling included, by turns: in a round
each decodes for about as long, so that a fast one does not have to read its weights back into the processor's caches.
The weights are FP16 values, as released checkpoints have them, unless `--values fp32`. Before a time is taken, the
logits must agree, and so must the codes of our decoders and of the growing cache, which draws the same noise (int8
decoders by a small network, agreement.py).

With `--window STEPS` whole windows are timed too: a prompt of half a window at once, then the other half step by step,
extrapolated from the first STEPS steps (a multiple of 64: noise is drawn for as many) if it has more. That favours the
growing cache, whose later steps are slower.
"""

from __future__ import annotations

if not __package__:
    from by_path import run as run_again

    run_again(__file__)

import argparse
import importlib.util
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..engine.config import PriorConfig
from ..engine.decoder import LevelSampling, WindowTask, choose_backend
from ..engine.prior import Prior
from . import agreement
from .decode import DTYPES
from .growing_cache import NOISE_BLOCK, GrowingCache
from .harness import QUICK_ROUNDS, Rows, add_record_options, quantiles, rounds_of, seconds
from .options import cores, decoder, device, positive, threads

TEMPERATURE = 0.99
SEED = 1
PEERS = ("transformers", "growing-cache")


class Sampler(Protocol):
    """`prefill` takes codes [B, context_len] and computes the first `prompt_len`; `run` writes those that follow."""

    def prefill(self, codes: Tensor, prompt_len: int) -> None: ...

    def run(self, start: int, stop: int) -> None: ...


class TransformersDecoder:
    """The body of the loop in `JukeboxConditionalAutoregressive.sample`, on its cache; `sample` itself raises without
    labels. `condition` [B, context_len, width] is that of an upper level."""

    def __init__(self, prior: Prior, condition: Tensor | None = None) -> None:
        from transformers.models.deprecated.jukebox.modeling_jukebox import filter_logits

        from .transformers_peer import build_prior

        self.model, self.filter_logits = build_prior(prior).prior.to(prior.device), filter_logits
        self.condition = torch.zeros(1, 1, prior.config.width, device=prior.device) if condition is None else condition

    @torch.inference_mode()
    def prefill(self, codes: Tensor, prompt_len: int) -> None:
        """As `primed_sample` does it: embedded one by one, then at once through the layers."""
        self.codes = codes
        self.model.transformer.del_cache()
        self.model.transformer(torch.cat([self._embed(pos)[0] for pos in range(prompt_len)], dim=1), sample=True)

    @torch.inference_mode()
    def logits(self, pos: int) -> Tensor:
        x, condition = self._embed(pos)
        x = self.model.transformer(x, sample=True)
        if self.model.add_cond_after_transformer:
            x = x + condition
        return self.model.fc_proj_out(x)[:, 0]

    @torch.inference_mode()
    def run(self, start: int, stop: int) -> None:
        for pos in range(start, stop):
            logits = self.filter_logits(self.logits(pos) / TEMPERATURE, top_k=0, top_p=0.0)
            self.codes[:, pos] = torch.distributions.Categorical(logits=logits).sample()

    def _embed(self, pos: int) -> tuple[Tensor, Tensor]:
        """A position with its condition, and the condition."""
        return self.model.get_emb(pos, len(self.codes), self.codes[:, pos - 1 : pos], self.condition, None)


class OurDecoder:
    """One of our decoders."""

    def __init__(self, prior: Prior, batch: int, backend: str) -> None:
        if prior.device.type == "cpu":
            agreement.check(backend)
        self.decoder = choose_backend(backend, prior.device, prior.dtype).build(prior, batch)
        self.level = prior.config.level

    def prefill(self, codes: Tensor, prompt_len: int) -> None:
        items, sampling = torch.arange(len(codes), device=codes.device), LevelSampling(TEMPERATURE)
        self.decoder.prefill(WindowTask(codes, prompt_len, items, SEED, self.level, 0, sampling))

    def run(self, start: int, stop: int) -> None:
        self.decoder.run(start, stop)


class Comparison:
    """Peers and our decoders by name, all on the same weights and with a prompt of half a window.

    Raises:
        RuntimeError: a peer's logits differ.
    """

    def __init__(
        self, config: PriorConfig, peers: list[str], backends: list[str], batch: int, values: str, device: torch.device
    ) -> None:
        with torch.inference_mode():
            prior = Prior(config).eval().to(device)
            for parameter in prior.parameters():
                parameter.copy_(parameter.to(DTYPES[values]))
            self.codes = torch.randint(config.codebook_size, (batch, config.context_len), device=device)
            self.half, self.room, self.device = config.context_len // 2, -(-config.context_len // 2), device
            expected = prior(self.codes[:, : self.half + 1])[:, -1]
        self.samplers: dict[str, Sampler] = {}
        self.sampled = {name: self.codes.clone() for name in (*peers, *backends)}
        for name in peers:
            peer = TransformersDecoder(prior) if name == "transformers" else GrowingCache(prior, TEMPERATURE, SEED)
            peer.prefill(self.sampled[name], self.half)
            error = (peer.logits(self.half) - expected).abs().max()
            if error > 1e-4:
                raise RuntimeError(f"logits of {name} differ by {error:.2g}: no times are reported")
            self.samplers[name] = peer
        for name in backends:
            self.samplers[name] = OurDecoder(prior, batch, name)
            self.samplers[name].prefill(self.sampled[name], self.half + 1)

    def steps(self, rounds: int, steps: int) -> dict[str, list[float]]:
        """Seconds per step of every round: of the first sampler for `steps` steps a round, of the others for as many
        as they do meanwhile, within the window.

        Raises:
            RuntimeError: the codes differ.
        """
        start, trial = self.half + 1, {}
        for name, sampler in self.samplers.items():
            trial[name] = seconds(lambda s=sampler: s.run(start, start + steps), self.device)
        start += steps
        room = (self.codes.shape[1] - start) // (rounds + 1)
        first = next(iter(trial.values()))
        share = {name: min(room, max(steps, round(steps * first / taken))) for name, taken in trial.items()}

        def turns(name: str) -> Callable[[], None]:
            positions = itertools.count(start, share[name])

            def turn() -> None:
                pos = next(positions)
                self.samplers[name].run(pos, pos + share[name])

            return turn

        found = rounds_of({name: turns(name) for name in self.samplers}, self.device, rounds)
        self._check({name: start + (rounds + 1) * count for name, count in share.items()})
        return {name: [taken / share[name] for taken in values] for name, values in found.items()}

    def _check(self, reached: dict[str, int]) -> None:
        """Those that draw the same noise with the same weights have the same codes, each as far as it came."""
        exact = [name for name in reached if name != "transformers" and "int8" not in name]
        furthest = max(exact, key=lambda name: reached[name], default="")
        for name in exact:
            stop = reached[name]
            if not torch.equal(self.sampled[name][:, :stop], self.sampled[furthest][:, :stop]):
                raise RuntimeError(f"the codes of {name} and {furthest} differ: no times are reported")

    def windows(self, rounds: int, steps: int) -> dict[str, list[float]]:
        """Seconds per window of every round: the prompt, and the other half from the time of its first `steps`."""
        times: dict[str, list[float]] = {name: [] for name in self.samplers}

        def window(name: str) -> None:
            sampler, codes = self.samplers[name], self.codes.clone()
            prompt = seconds(lambda: sampler.prefill(codes, self.half), self.device)
            taken = seconds(lambda: sampler.run(self.half, self.half + steps), self.device)
            times[name].append(prompt + taken * self.room / steps)

        rounds_of({name: lambda n=name: window(n) for name in self.samplers}, self.device, rounds)
        return {name: values[-rounds:] for name, values in times.items()}


def present(peers: list[str] | None) -> list[str]:
    """The peers asked for, or all that are installed."""
    try:
        # Later releases have no Jukebox.
        found = importlib.util.find_spec("transformers.models.deprecated.jukebox")
    except ModuleNotFoundError:
        found = None
    if peers is None and found is None:
        print("a release of transformers with Jukebox is not installed: not compared")
        return ["growing-cache"]
    return list(dict.fromkeys(peers or PEERS))


def measure(args: argparse.Namespace, config: PriorConfig, peers: list[str], batch: int) -> dict[str, Any]:
    """One record's figures, in milliseconds; `<name>_speedup` is against transformers, within rounds."""
    comparison = Comparison(config, peers, args.backends, batch, args.values, torch.device(args.device))
    times = comparison.steps(args.rounds, args.steps)
    figures: dict[str, Any] = {f"{name}_ms": quantiles([1e3 * t for t in found]) for name, found in times.items()}
    for peer, suffix in (("transformers", "speedup"), ("growing-cache", "over_growing-cache")):
        rest = [name for name in times if name != peer and not (name in PEERS and suffix != "speedup")]
        for name in rest if peer in peers else ():
            # Within a round all saw the same machine.
            pairs = zip(times[peer], times[name], strict=True)
            figures[f"{name}_{suffix}"] = quantiles([slow / fast for slow, fast in pairs])
    if args.window:
        steps = min(-(-args.window // NOISE_BLOCK) * NOISE_BLOCK, comparison.room)
        windows = comparison.windows(min(args.rounds, 5), steps)
        figures |= {f"{name}_window_ms": quantiles([1e3 * t for t in found]) for name, found in windows.items()}
        figures |= {"window_steps": steps, "extrapolated": steps < comparison.room}
    return figures


def say(f: dict[str, Any]) -> str:
    quartiles = {name: q for name, q in f.items() if isinstance(q, dict)}
    return "".join(
        f"\n    {name:34} {q['p50']:10.3f}  (p20 {q['p20']:.3f}, p80 {q['p80']:.3f})" for name, q in quartiles.items()
    )


def parser() -> argparse.ArgumentParser:
    """The options of this script."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu")
    found.add_argument("--peers", nargs="+", choices=PEERS)
    found.add_argument(
        "--backends",
        nargs="+",
        type=decoder,
        help="`fastjukebox info` lists them [default: eager native; on a GPU eager triton]",
    )
    found.add_argument("--depth", type=positive, default=72, help="layers")
    found.add_argument("--width", type=positive, default=128)
    found.add_argument("--heads", type=positive, default=1)
    found.add_argument("--context", type=positive, default=8192, help="codes in a window")
    found.add_argument("--rows", type=positive, default=128)
    found.add_argument("--batch", type=positive, nargs="+", default=[1])
    found.add_argument("--rounds", type=positive, default=15)
    found.add_argument("--steps", type=positive, default=10, help="steps per round of the first peer")
    found.add_argument("--window", type=positive, nargs="?", const=64, metavar="STEPS", help="whole windows too")
    found.add_argument("--values", choices=["fp16", "fp32"], default="fp16", help="what the FP32 weights hold")
    found.add_argument("--threads", type=threads, nargs="+", help="of the CPU [default: 1 2, of one core 1]")
    found.add_argument("--quick", action="store_true", help="few rounds, the first batch, one number of threads")
    add_record_options(found)
    return found


def commands(records: Sequence[dict[str, Any]]) -> list[str]:
    """What measures these records again: a command for all that differ in the batch only."""
    default, groups = parser().get_default, dict[str, list[int]]()
    for r in records:
        said = {key: r.get(key) for key in ("rounds", "threads")}
        said |= {"window": r.get("window_steps"), "backends": " ".join(r["backends"])}
        rest = {key: r.get(key) for key in ("depth", "width", "heads", "context", "rows", "steps", "values")}
        said |= {key: value for key, value in rest.items() if value != default(key)}
        said["peers"] = None if tuple(r.get("peers", PEERS)) == PEERS else " ".join(r["peers"])
        options = "".join(f" --{key} {value}" for key, value in said.items() if value is not None)
        groups.setdefault(options, []).append(r["batch"])
    return [f"python bench peers --batch {' '.join(map(str, batch))}{options}" for options, batch in groups.items()]


def main(arguments: list[str] | None = None) -> int:
    options = parser()
    args = options.parse_args(arguments)
    gpu = torch.device(args.device).type == "cuda"
    threads = args.threads or ([torch.get_num_threads()] if gpu else sorted({1, min(2, cores())}))
    if args.quick:
        args.rounds, args.batch, threads = min(args.rounds, QUICK_ROUNDS), args.batch[:1], threads[-1:]
    args.backends = args.backends or (["eager", "triton"] if gpu else ["eager", "native"])
    config = PriorConfig(2, args.width, args.depth, args.heads, args.context, args.rows)
    if args.context // 2 + 1 + (args.rounds + 2) * args.steps > args.context:
        options.error(f"{args.rounds} rounds of {args.steps} steps do not fit into half of {args.context} codes")
    peers = present(args.peers)
    print(f"{args.depth} layers, width {args.width}, FP32, from code {args.context // 2}")
    said = {key: getattr(args, key) for key in ("backends", "depth", "width", "heads", "context", "rows", "rounds")}
    said |= {"steps": args.steps, "values": args.values, "peers": peers, "dtype": "float32"}
    status = 0
    for count in threads:
        rows = Rows("peers", argparse.Namespace(**{**vars(args), "threads": count}))
        for batch in args.batch:
            torch.manual_seed(SEED)
            row = f"{args.depth}x{args.width} batch {batch}, {count} threads"
            row += f", windows by {args.window} steps" if args.window else ""
            rows.add(row, lambda b=batch: measure(args, config, peers, b), say, {**said, "batch": batch})
        status = max(status, rows.status)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
