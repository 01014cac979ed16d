"""Time per sampled code, ours against `transformers` 4.57.6 on the same weights, in one run on the same CPU.

    python bench peers [--json bench/results/peers.jsonl]

All compute in FP32 with their own cache from the middle of a window, sampling included, by turns: in a round each
decodes for about as long, so that a fast one is not timed while it reads its weights back into the processor's caches.
The weights are FP16 values, as released checkpoints have them, unless `--values fp32`. Before a time is taken, the
logits must agree, and so must the codes of our decoders.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers.models.deprecated.jukebox.modeling_jukebox import filter_logits

from ..engine.config import PriorConfig
from ..engine.decoder import Decoder, LevelSampling, WindowTask, choose_backend
from ..engine.prior import Prior
from .decode import DTYPES
from .harness import append, circumstances, quantiles, rounds_of, seconds
from .transformers_peer import build_prior

TEMPERATURE = 0.99
SEED = 1


class TransformersDecoder:
    """The body of the loop in `JukeboxConditionalAutoregressive.sample`, on its cache; `sample` itself raises without
    labels."""

    def __init__(self, prior: Prior, codes: Tensor, prompt_len: int) -> None:
        self.model, self.codes = build_prior(prior).prior, codes
        self.no_condition = torch.zeros(len(codes), 1, prior.config.width)
        self.model.transformer(torch.cat([self._embed(pos) for pos in range(prompt_len)], dim=1), sample=True)

    def logits(self, pos: int) -> Tensor:
        x = self.model.transformer(self._embed(pos), sample=True)
        return self.model.fc_proj_out(x + self.no_condition)

    def run(self, start: int, stop: int) -> None:
        for pos in range(start, stop):
            logits = filter_logits(self.logits(pos) / TEMPERATURE, top_k=0, top_p=0.0)
            self.codes[:, pos : pos + 1] = torch.distributions.Categorical(logits=logits).sample()

    def _embed(self, pos: int) -> Tensor:
        return self.model.get_emb(pos, len(self.codes), self.codes[:, pos - 1 : pos], self.no_condition, None)[0]


def our_decoder(prior: Prior, codes: Tensor, prompt_len: int, backend: str) -> Decoder:
    """One of our decoders with the prompt in its cache."""
    decoder = choose_backend(backend, prior.device, prior.dtype).build(prior, len(codes))
    items, sampling = torch.arange(len(codes)), LevelSampling(TEMPERATURE)
    decoder.prefill(WindowTask(codes, prompt_len, items, SEED, prior.config.level, 0, sampling))
    return decoder


@torch.inference_mode()
def compare(
    config: PriorConfig, backends: list[str], batch: int, rounds: int, steps: int, values: torch.dtype
) -> dict[str, list[float]]:
    """Seconds per step of every round, by name: "transformers", for `steps` steps a round, and each backend, for as
    many as it does meanwhile, within the window.

    Raises:
        RuntimeError: the logits or the codes differ.
    """
    prior = Prior(config).eval()
    for parameter in prior.parameters():
        parameter.copy_(parameter.to(values))
    start = config.context_len // 2
    codes = torch.randint(config.codebook_size, (batch, config.context_len))
    theirs = TransformersDecoder(prior, codes.clone(), start)
    error = (theirs.logits(start)[:, 0] - prior(codes[:, : start + 1])[:, -1]).abs().max()
    if error > 1e-4:
        raise RuntimeError(f"logits differ by {error:.2g}: no times are reported")
    sampled = {backend: codes.clone() for backend in backends}
    decoders: dict[str, TransformersDecoder | Decoder] = {
        "transformers": theirs,
        **{backend: our_decoder(prior, sampled[backend], start + 1, backend) for backend in backends},
    }

    trial = {}
    for name, decoder in decoders.items():
        trial[name] = seconds(lambda d=decoder: d.run(start + 1, start + 1 + steps), prior.device)
    room = (config.context_len - start - 1 - steps) // (rounds + 1)
    share = {name: min(room, max(steps, round(steps * trial["transformers"] / taken))) for name, taken in trial.items()}

    def turns(name: str) -> Callable[[], None]:
        positions = itertools.count(start + 1 + steps, share[name])

        def turn() -> None:
            pos = next(positions)
            decoders[name].run(pos, pos + share[name])

        return turn

    found = rounds_of({name: turns(name) for name in decoders}, prior.device, rounds)
    times = {name: [taken / share[name] for taken in values] for name, values in found.items()}
    exact = [backend for backend in backends if "int8" not in backend]
    reached = start + 1 + steps + (rounds + 1) * min(share[backend] for backend in exact)
    if any(not torch.equal(sampled[b][:, :reached], sampled[exact[0]][:, :reached]) for b in exact):
        raise RuntimeError(f"the codes of {', '.join(exact)} differ: no times are reported")
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=["eager", "native"], help="`fastjukebox info` lists them")
    parser.add_argument("--depth", type=int, default=72, help="layers")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument("--context", type=int, default=8192, help="codes in a window")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=10, help="steps per round of transformers")
    parser.add_argument("--values", choices=["fp16", "fp32"], default="fp16", help="what the FP32 weights hold")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path, help="append one record per thread count to this file, a line each")
    args = parser.parse_args()
    config = PriorConfig(2, args.width, args.depth, args.heads, args.context, args.rows)
    if args.context // 2 + 1 + (args.rounds + 2) * args.steps > args.context:
        parser.error(f"{args.rounds} rounds of {args.steps} steps do not fit into half of {args.context} codes")
    print(f"{args.depth} layers, width {args.width}, batch {args.batch}, FP32, from code {args.context // 2}")
    for threads in args.threads:
        torch.set_num_threads(threads)
        torch.manual_seed(SEED)
        times = compare(config, args.backends, args.batch, args.rounds, args.steps, DTYPES[args.values])
        results = {f"{name}_ms": quantiles([1e3 * value for value in values]) for name, values in times.items()}
        for backend in args.backends:
            # Within a round all saw the same machine.
            pairs = zip(times["transformers"], times[backend], strict=True)
            results[f"{backend}_speedup"] = quantiles([their / our for their, our in pairs])
        for name, q in results.items():
            print(f"{threads} threads  {name:20} {q['p50']:8.3f}  (p20 {q['p20']:.3f}, p80 {q['p80']:.3f})")
        record = {
            "bench": "peers",
            **{key: value for key, value in vars(args).items() if key not in ("json", "threads")},
            "dtype": "float32",
            **circumstances(torch.device("cpu")),
            **results,
        }
        if args.json:
            append(args.json, record)


if __name__ == "__main__":
    main()
