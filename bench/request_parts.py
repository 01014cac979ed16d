"""A whole request taken apart: what each window and everything around it took, and what a longer request would take."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ..engine import checkpoint
from ..engine.config import JukeboxConfig
from ..engine.decoder import Backend, Decoder, WindowTask
from ..engine.jukebox import Jukebox
from ..engine.prior import Prior
from ..engine.sampler import Sampling, SamplingParams
from ..engine.vqvae import VQVAE

PARTS = ("decode", "prefill", "vqvae", "file", "rest")


@dataclass
class LevelCost:
    """One level of a request: seconds in prompts and in steps, and how many of each."""

    windows: int = 0
    prompted: int = 0
    prefill: float = 0.0
    steps: int = 0
    decode: float = 0.0

    def at(self, windows: int, steps: int) -> tuple[float, float]:
        """Seconds of prompts and of decoding for more windows and steps; all windows but the first have a prompt, and
        the mean one is as long as here."""
        prompts = self.prefill / self.prompted * (windows - 1) if self.prompted else 0.0
        return prompts, self.decode / self.steps * steps


class Timed:
    """A decoder whose prefill and run are timed, to the end of the work they start."""

    def __init__(self, decoder: Decoder, device: torch.device, costs: dict[int, LevelCost]) -> None:
        self.decoder, self.device, self.costs = decoder, device, costs

    def _wait(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def prefill(self, task: WindowTask) -> None:
        self.cost = self.costs.setdefault(task.level, LevelCost())
        begun = self._wait()
        self.decoder.prefill(task)
        self.cost.prefill += self._wait() - begun
        self.cost.windows += 1
        self.cost.prompted += task.prompt_len > 0

    def run(self, start: int, stop: int) -> None:
        begun = self._wait()
        self.decoder.run(start, stop)
        self.cost.decode += self._wait() - begun
        self.cost.steps += stop - start


@dataclass
class Spent:
    """Seconds of one request; `vqvae` and `file` are the same work done once more apart, `rest` is what remains:
    conditioners, and building the decoders."""

    total: float
    vqvae: float
    file: float
    levels: dict[int, LevelCost]

    @property
    def decode(self) -> float:
        return sum(cost.decode for cost in self.levels.values())

    @property
    def prefill(self) -> float:
        return sum(cost.prefill for cost in self.levels.values())

    @property
    def rest(self) -> float:
        return self.total - self.decode - self.prefill - self.vqvae - self.file

    @property
    def steps(self) -> int:
        return sum(cost.steps for cost in self.levels.values())

    @property
    def windows(self) -> int:
        return sum(cost.windows for cost in self.levels.values())

    def extrapolated(self, wanted: dict[int, tuple[int, int]], longer: float) -> float:
        """Seconds of a request `longer` times as long, with `wanted` windows and steps of each level: prompts and steps
        at each level's cost, the rest by the number of windows, VQ-VAE and file by the length."""
        windows = sum(count for count, _ in wanted.values())
        total = (self.vqvae + self.file) * longer + self.rest * windows / self.windows
        return total + sum(sum(self.levels[level].at(*counts)) for level, counts in wanted.items())


class Stack:
    """A stack of random weights in `folder`, and what its requests of `seconds` took."""

    def __init__(self, config: JukeboxConfig, folder: Path, device: str, backend: str, seconds: float) -> None:
        torch.manual_seed(1)
        folder.mkdir(exist_ok=True)
        checkpoint.save_config(folder, config)
        checkpoint.save_network(folder / checkpoint.VQVAE_FILE, VQVAE(config.vqvae))
        for prior in config.priors:
            checkpoint.save_network(folder / checkpoint.prior_file(prior.level), Prior(prior))
        self.jukebox = Jukebox.from_pretrained(folder, device, backend=backend)
        self.file, self.seconds, self.seed = folder / "out.wav", seconds, 0
        chosen = self.jukebox.backend
        self.backend, self.requests = chosen.name, list[Spent]()
        self.jukebox.backend = Backend(
            chosen.name,
            lambda prior, batch: Timed(chosen.build(prior, batch), prior.device, self.costs),
            chosen.missing,
        )
        for prior in config.priors:
            self.jukebox.prior(prior.level)

    def request(self) -> None:
        """One piece, another with each call."""
        self.seed += 1
        self.costs: dict[int, LevelCost] = {}
        begun = time.perf_counter()
        result = self.jukebox.sample(SamplingParams(seconds=self.seconds, seed=self.seed))
        result.save(self.file)
        total = time.perf_counter() - begun
        begun = time.perf_counter()
        audio = self.jukebox.decode(result.codes[0])
        decoded = time.perf_counter()
        dataclasses.replace(result, audio=audio).save(self.file)
        self.requests.append(Spent(total, decoded - begun, time.perf_counter() - decoded, self.costs))

    def work(self, seconds: float) -> dict[int, tuple[int, int]]:
        """Windows and steps of each level in a request of so many seconds."""
        config = self.jukebox.config
        samples = round(seconds * config.vqvae.sample_rate)
        nothing = [torch.zeros(1, 0, dtype=torch.long)] * len(config.priors)
        windows = Sampling(config, SamplingParams(seconds=seconds), samples, nothing).windows("level")
        found: dict[int, tuple[int, int]] = {}
        for window in windows:
            count, steps = found.get(window.level, (0, 0))
            found[window.level] = count + 1, steps + window.new_codes
        return found
