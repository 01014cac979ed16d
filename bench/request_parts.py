"""A whole request taken apart: what each window and everything around it took, and what a longer request would take."""

from __future__ import annotations

import dataclasses
import importlib.util
import time
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engine import checkpoint
from ..engine.audio import write_audio
from ..engine.config import JukeboxConfig
from ..engine.decoder import WindowTask
from ..engine.jukebox import Jukebox
from ..engine.prior import Prior
from ..engine.sampler import Sampling, SamplingParams
from ..engine.vqvae import VQVAE
from . import agreement
from .stand_in import build

PARTS = ("decode", "prefill", "condition", "vqvae", "file")


@dataclass
class LevelCost:
    """One level of a request: seconds in prompts and in steps, and how many of each."""

    windows: int = 0
    prompted: int = 0
    prefill: float = 0.0
    steps: int = 0
    decode: float = 0.0

    def __add__(self, other: LevelCost) -> LevelCost:
        return LevelCost(
            *(one + two for one, two in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True))
        )

    def at(self, windows: int, steps: int) -> float:
        """Seconds for more windows and steps; all windows but the first have a prompt, the mean one as long as here."""
        prompts = self.prefill / self.prompted * (windows - 1) if self.prompted else 0.0
        return prompts + self.decode / self.steps * steps


class Timed:
    """A decoder whose work is timed, to the end of what it starts; `costs` gets an entry for each window, `conditions`
    the seconds of each condition."""

    def __init__(
        self, decoder: Any, device: torch.device, costs: list[tuple[int, LevelCost]], conditions: list[float]
    ) -> None:
        self.decoder, self.device, self.costs, self.conditions = decoder, device, costs, conditions

    def twin(self, threads: int) -> Timed:
        return Timed(self.decoder.twin(threads), self.device, self.costs, self.conditions)

    def _wait(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _open(self, task: WindowTask) -> None:
        self.cost = LevelCost(windows=1, prompted=int(task.prompt_len > 0))
        self.costs.append((task.level, self.cost))

    def condition(self, upper_codes: Tensor) -> Tensor:
        begun = self._wait()
        found = self.decoder.condition(upper_codes)
        self.conditions.append(self._wait() - begun)
        return found

    def prefill(self, task: WindowTask) -> None:
        self._open(task)
        begun = self._wait()
        self.decoder.prefill(task)
        self.cost.prefill += self._wait() - begun

    def begin(self, task: WindowTask) -> None:
        self._open(task)
        self.decoder.begin(task)

    def extend(self, start: int, stop: int) -> None:
        begun = time.perf_counter()
        self.decoder.extend(start, stop)
        self.cost.prefill += time.perf_counter() - begun

    def run(self, start: int, stop: int) -> None:
        begun = self._wait()
        self.decoder.run(start, stop)
        self.cost.decode += self._wait() - begun
        self.cost.steps += stop - start


@dataclass
class Spent:
    """Seconds of one request, and of its parts, which may overlap; `vqvae` and `file` are the same work done once more
    apart."""

    total: float
    condition: float
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
    def steps(self) -> int:
        return sum(cost.steps for cost in self.levels.values())

    @property
    def windows(self) -> int:
        return sum(cost.windows for cost in self.levels.values())

    def extrapolated(self, wanted: dict[int, tuple[int, int]], longer: float) -> float:
        """Seconds of a request `longer` times as long, with `wanted` windows and steps of each level: as much more as
        its parts take, prompts and steps at each level's cost, conditions by the number of windows, VQ-VAE and file by
        the length."""
        windows = sum(count for count, _ in wanted.values())
        work = sum(self.levels[level].at(*counts) for level, counts in wanted.items())
        work += self.condition * windows / self.windows + (self.vqvae + self.file) * longer
        return self.total * work / sum(getattr(self, part) for part in PARTS)


def save(samples: Tensor, sample_rate: int, path: Path) -> None:
    """Samples [1, n] as a 16-bit wav: as `Result.save` does it, by the standard library where there is no soundfile, as
    on machines that have a GPU and little else."""
    if importlib.util.find_spec("soundfile") is not None:
        write_audio(path, samples, sample_rate)
        return
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes((samples[0].clamp(-1, 1) * 32767).round().to(torch.int16).numpy().tobytes())


class Stack:
    """A stack of random weights in `folder`, and what its requests of `seconds` took.

    Raises:
        RuntimeError: the decoder's codes are not the eager one's (agreement.py).
    """

    def __init__(self, config: JukeboxConfig, folder: Path, device: str, backend: str, seconds: float) -> None:
        torch.manual_seed(1)
        folder.mkdir(exist_ok=True)
        checkpoint.save_config(folder, config)
        checkpoint.save_network(folder / checkpoint.VQVAE_FILE, VQVAE(config.vqvae))
        for prior in config.priors:
            network = build(Prior, prior, torch.device("cpu"), torch.float16)
            checkpoint.save_network(folder / checkpoint.prior_file(prior.level), network)
        self.jukebox = Jukebox.from_pretrained(folder, device, backend=backend)
        self.file, self.seconds, self.seed = folder / "out.wav", seconds, 0
        chosen = self.jukebox.backend
        if self.jukebox.device.type == "cpu":
            agreement.check(chosen.name)
        self.backend, self.requests = chosen.name, list[Spent]()
        self.jukebox.backend = dataclasses.replace(
            chosen,
            build=lambda prior, batch: Timed(chosen.build(prior, batch), prior.device, self.costs, self.conditions),
        )
        # They are loaded before the first request.
        for prior in config.priors:
            self.jukebox.prior(prior.level)

    def request(self, seconds: float | None = None) -> None:
        """One piece, another with each call; `seconds` where it is to have another length."""
        self.seed += 1
        self.costs: list[tuple[int, LevelCost]] = []
        self.conditions: list[float] = []
        begun = time.perf_counter()
        result = self.jukebox.sample(SamplingParams(seconds=seconds or self.seconds, seed=self.seed))
        save(result.audio, result.sample_rate, self.file)
        total = time.perf_counter() - begun
        begun = time.perf_counter()
        audio = self.jukebox.decode(result.codes[0])
        decoded = time.perf_counter()
        save(audio, result.sample_rate, self.file)
        saved = time.perf_counter()
        levels: dict[int, LevelCost] = {}
        for level, cost in self.costs:
            levels[level] = levels.get(level, LevelCost()) + cost
        self.requests.append(Spent(total, sum(self.conditions), decoded - begun, saved - decoded, levels))

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
