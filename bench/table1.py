"""Table 1 of the paper on this machine: the 72-layer teacher against the 24- and 18-layer students, end to end.

    python bench table1 [--sizes demo --audio-seconds 4 --rounds 3 --json FILE]

What is timed is a whole request at all levels: conditioning and prompt of every window, decoding, the VQ-VAE and the
file; the model is loaded before. The paper times 60 s; a shorter request (`--audio-seconds`, the record says how long)
has the same windows per second but for the first ones, which have no prompt. The depths take turns in each round, and
speed-ups are taken within rounds. Speed does not depend on the weights: they are random, FP16 values in FP32 as a
released checkpoint has them, and sizes are those of `distill/presets.py`. The seven systems of the paper have three
depths, so three rows are all there is to time.

The parts: `decode` and `prefill` are timed inside the request, `vqvae` and `file` are the same work done once more
apart; `rest` is what remains, the conditioners and everything around.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from ..distill.presets import PRESETS
from ..engine import checkpoint
from ..engine.config import JukeboxConfig
from ..engine.decoder import Backend, Decoder, WindowTask
from ..engine.jukebox import Jukebox
from ..engine.prior import Prior
from ..engine.sampler import SamplingParams
from ..engine.vqvae import VQVAE
from .harness import add_options, append, circumstances, quantiles, rounds_of

# Speed-up over 72 layers on a Tesla P100 (Table 1).
PAPER = {72: 1.0, 24: 3.0, 18: 4.0}
PARTS = ("decode", "prefill", "vqvae", "file", "rest")


class Timed:
    """A decoder whose prefill and run are timed, to the end of the work they start."""

    def __init__(self, decoder: Decoder, device: torch.device, spent: dict[str, float]) -> None:
        self.decoder, self.device, self.spent = decoder, device, spent

    def _wait(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def prefill(self, task: WindowTask) -> None:
        begun = self._wait()
        self.decoder.prefill(task)
        self.spent["prefill"] += self._wait() - begun

    def run(self, start: int, stop: int) -> None:
        begun = self._wait()
        self.decoder.run(start, stop)
        self.spent["decode"] += self._wait() - begun
        self.spent["steps"] += stop - start


class Stack:
    """A stack of random weights at one depth, and what its requests took."""

    def __init__(self, config: JukeboxConfig, folder: Path, options: argparse.Namespace) -> None:
        torch.manual_seed(1)
        checkpoint.save_config(folder, config)
        checkpoint.save_network(folder / checkpoint.VQVAE_FILE, VQVAE(config.vqvae))
        for prior in config.priors:
            checkpoint.save_network(folder / checkpoint.prior_file(prior.level), Prior(prior))
        self.jukebox = Jukebox.from_pretrained(folder, options.device, backend=options.backend)
        self.file, self.seconds, self.seed = folder / "out.wav", options.audio_seconds, 0
        backend = self.jukebox.backend
        self.name, self.parts = backend.name, []
        self.jukebox.backend = Backend(
            backend.name,
            lambda prior, batch: Timed(backend.build(prior, batch), prior.device, self.spent),
            backend.missing,
        )
        for prior in config.priors:
            self.jukebox.prior(prior.level)

    def request(self) -> None:
        """One piece, another with each call."""
        self.seed += 1
        self.spent = {"decode": 0.0, "prefill": 0.0, "steps": 0.0}
        begun = time.perf_counter()
        result = self.jukebox.sample(SamplingParams(seconds=self.seconds, seed=self.seed))
        result.save(self.file)
        total = time.perf_counter() - begun
        begun = time.perf_counter()
        audio = self.jukebox.decode(result.codes[0])
        decoded = time.perf_counter()
        dataclasses.replace(result, audio=audio).save(self.file)
        self.spent |= {"total": total, "vqvae": decoded - begun, "file": time.perf_counter() - decoded}
        self.spent["rest"] = total - sum(self.spent[part] for part in PARTS[:-1])
        self.parts.append(self.spent)

    def figures(self, rounds: int) -> dict[str, Any]:
        parts = self.parts[-rounds:]
        steps = parts[0]["steps"]
        return {
            "backend": self.name,
            "steps": steps,
            "real_time": quantiles([self.seconds / part["total"] for part in parts]),
            "us_per_step": quantiles([1e6 * part["decode"] / steps for part in parts]),
            **{f"{name}_s": quantiles([part[name] for part in parts]) for name in parts[0] if name != "steps"},
        }


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU, or of this process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", choices=["tiny", "demo", "paper"], help="[default: paper on a GPU, else demo]")
    parser.add_argument("--audio-seconds", type=float, default=4.0, help="length of the request")
    parser.add_argument("--backend", default="auto")
    add_options(parser)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    sizes = options.sizes or ("paper" if device.type == "cuda" else "demo")
    rounds = min(options.rounds, 3)
    preset = PRESETS[sizes]
    with tempfile.TemporaryDirectory() as folder:
        stacks: dict[int, Stack] = {}
        memory = {}
        # From the smallest on: the peak of a process only grows.
        for depth in (18, 24, 72):
            priors = (dataclasses.replace(p, depth=preset.depths.get(depth, depth)) for p in preset.config.priors)
            config = JukeboxConfig(preset.config.vqvae, tuple(priors))
            (Path(folder) / str(depth)).mkdir()
            stacks[depth] = Stack(config, Path(folder) / str(depth), options)
            stacks[depth].request()
            memory[depth] = peak_memory(device)
        times = rounds_of({str(depth): stack.request for depth, stack in stacks.items()}, device, rounds)
    totals = {depth: [part["total"] for part in stack.parts[-rounds:]] for depth, stack in stacks.items()}
    assert all(len(values) == rounds for values in times.values())
    for depth in (72, 24, 18):
        found = stacks[depth].figures(rounds)
        speed_up = quantiles([slow / fast for slow, fast in zip(totals[72], totals[depth], strict=True)])
        parts = ", ".join(f"{name} {found[f'{name}_s']['p50']:.2f}" for name in PARTS)
        print(
            f"{depth} layers  {speed_up['p50']:.2f}x (paper {PAPER[depth]:.1f}x)  "
            f"{found['us_per_step']['p50']:.0f} us per step  {found['real_time']['p50']:.3f} of real time  "
            f"total {found['total_s']['p50']:.2f} s: {parts}  peak {memory[depth] / 1e6:.0f} MB"
        )
        if options.json:
            append(
                options.json,
                {"bench": "table1", "row": f"{sizes} {depth} layers", "depth": depth, "sizes": sizes}
                | {"audio_seconds": options.audio_seconds, "rounds": rounds, "peak_bytes": memory[depth]}
                | {"speed_up": speed_up, "paper_speed_up": PAPER[depth], **found, **circumstances(device)},
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
