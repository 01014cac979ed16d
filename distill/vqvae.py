"""Trains one level of the VQ-VAE: reconstruction and commitment by gradient, the codebook by moving averages.

The levels share nothing (Dhariwal et al. 2020, section 3.1), so each is a stage of its own. Codebook: van den Oord et
al. 2017, appendix A.1, with Jukebox's restarts: a code that is hardly used moves to a random latent of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine.checkpoint import assign
from ..engine.config import VQVAEConfig
from ..engine.vqvae import VQVAE
from . import losses
from .audio_crops import AudioCrops
from .parallel import Processes
from .run_folder import STATE, read_state, unfit
from .settings import above, at_least, below, plain
from .trainer import Budget, train


@dataclass(frozen=True)
class VQVAETraining:
    """What a level is trained with."""

    steps: int
    batch: int = 2
    learning_rate: float = 1e-3
    # Jukebox has 0.02 beside absolute errors; beside relative ones, 0.25 kept more codes in use (perplexity 526 against
    # 479 of 1024 after 350 steps at level 0) and the reconstruction 0.4 dB better.
    commitment: float = 0.25
    waveform: float = 1.0
    spectral: float = 1.0
    log_spectral: float = 0.2
    # Jukebox has 0.99 with batches of 256; a batch of 2 has an encoder that moves faster than that average follows.
    codebook_decay: float = 0.97
    # Before this step the decoder sees the latents themselves; the batch of this step initializes the codebook. Codes
    # taken from an untrained encoder are all alike, and most would be dead a hundred steps later.
    quantize_from: int = 100

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch")
        at_least(self, 0.0, "commitment", "waveform", "spectral", "log_spectral", "codebook_decay", "quantize_from")
        above(self, 0.0, "learning_rate")
        below(self, 1.0, "codebook_decay")


class CodebookAverage:
    """Keeps `codebook` [codes, dim] at the moving mean of the latents assigned to each code; writes it in place."""

    def __init__(self, codebook: Tensor, decay: float = 0.97, dead_below: float = 0.1) -> None:
        self.codebook = codebook
        self.decay = decay
        # A code is dead below this share of the mean usage: the batch of a high level may hold fewer latents than
        # there are codes, so no absolute count would do.
        self.dead_below = dead_below
        self.counts = codebook.new_zeros(len(codebook))
        self.sums = torch.zeros_like(codebook)
        self.is_started = False

    def start(self, latents: Tensor, generator: torch.Generator) -> None:
        """Take the codes from `latents` [n, dim]; where there are fewer than codes, repeat them with a little noise."""
        size = len(self.codebook)
        order = torch.randperm(len(latents), generator=generator).to(latents.device)
        chosen = latents[order.repeat(-(-size // len(latents)))[:size]]
        noise = torch.randn(chosen.shape, generator=generator).to(latents) * 0.01 * latents.std()
        self.codebook.copy_(chosen + noise)
        self.counts.fill_(len(latents) / size)
        self.sums.copy_(self.codebook * self.counts[:, None])
        self.is_started = True

    def update(self, latents: Tensor, codes: Tensor, generator: torch.Generator) -> int:
        """Move towards `latents` [n, dim] assigned to `codes` [n]; the number of dead codes that were restarted."""
        size = len(self.codebook)
        self.counts.lerp_(torch.bincount(codes, minlength=size).to(self.counts), 1 - self.decay)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, codes, latents), 1 - self.decay)
        usual = len(latents) / size
        dead = self.counts < self.dead_below * usual
        count = int(dead.sum())
        if count:
            chosen = torch.randint(len(latents), (count,), generator=generator).to(latents.device)
            # The usage of an average code: time enough to find latents of its own before it is judged again.
            self.counts[dead] = usual
            self.sums[dead] = latents[chosen] * usual
        self.codebook.copy_(self.sums / self.counts[:, None])
        return count

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self.counts, "sums": self.sums, "codebook": self.codebook, "is_started": self.is_started}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("counts", "sums", "codebook"):
            getattr(self, name).copy_(state[name])
        self.is_started = state["is_started"]


class LevelObjective(nn.Module):
    """One level of a VQ-VAE with its codebook average; a pass gives the training loss."""

    def __init__(
        self, vqvae: VQVAE, level: int, settings: VQVAETraining, seed: int, processes: Processes | None = None
    ) -> None:
        super().__init__()
        self.level, self.settings, self.seed = level, settings, seed
        self.processes = processes or Processes()
        self.coder = nn.ModuleList((vqvae.encoders[level], vqvae.decoders[level]))
        # Not a part of this module: the other levels, and the codebook, which has a training of its own.
        self._vqvae = (vqvae,)
        self.average = CodebookAverage(vqvae.codebook(level), settings.codebook_decay)
        self.restarted = 0

    @property
    def vqvae(self) -> VQVAE:
        return self._vqvae[0]

    def forward(self, audio: Tensor, step: int) -> Tensor:
        """The training loss of [B, samples]; moves the codebook."""
        encoder, decoder = self.coder
        latents = encoder(audio[:, None])
        quantized = latents.detach()
        if step >= self.settings.quantize_from:
            quantized = self._quantize(quantized, step)
        commitment = F.mse_loss(latents, quantized)
        # Straight through: the decoder sees the code, the encoder gets the decoder's gradient.
        output = decoder(latents + (quantized - latents).detach())[:, 0]
        terms = losses.reconstruction(output, audio, processes=self.processes)
        settings = self.settings
        return (
            settings.waveform * terms.waveform
            + settings.spectral * terms.spectral
            + settings.log_spectral * terms.log_spectral
            + settings.commitment * commitment
        )

    @torch.no_grad()
    def _quantize(self, latents: Tensor, step: int) -> Tensor:
        """The codes of [B, code_dim, T], as latents; then the codebook moves towards these latents."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        flat = latents.transpose(1, 2).flatten(0, 1)
        if not self.average.is_started:
            self.average.start(self.processes.gather(flat)[0], generator)
        codes = self.vqvae.quantize(latents, self.level)
        quantized = self.vqvae.dequantize(codes, self.level)
        everywhere, their_codes = self.processes.gather(flat, codes.flatten())
        self.restarted = self.average.update(everywhere, their_codes, generator)
        return quantized

    @torch.no_grad()
    def measure(self, audio: Tensor) -> dict[str, float]:
        """Reconstruction and codebook usage on [B, samples]."""
        encoder, decoder = self.coder
        size = self.vqvae.config.codebook_size
        codes, outputs = [], []
        for item in audio.split(1):
            found = self.vqvae.quantize(encoder(item[:, None]), self.level)
            codes.append(found)
            outputs.append(decoder(self.vqvae.dequantize(found, self.level))[:, 0])
        output, found = torch.cat(outputs), torch.cat(codes)
        terms = losses.reconstruction(output, audio)
        return {
            "snr_db": losses.snr(output, audio),
            "spectral": float(terms.spectral),
            "log_spectral": float(terms.log_spectral),
            "perplexity": losses.perplexity(found, size),
            "codes_used": float(found.unique().numel()),
            "restarted": float(self.restarted),
        }


def train_level(
    folder: Path,
    config: VQVAEConfig,
    level: int,
    crops: AudioCrops,
    settings: VQVAETraining,
    seed: int,
    device: torch.device | None = None,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Train one level, or go on with the run in `folder`; the figures are measured on held-out songs."""
    processes = processes or Processes()
    device = device or torch.device("cpu")
    torch.manual_seed(seed)
    objective = LevelObjective(VQVAE(config).to(device), level, settings, seed, processes)
    wrapped = processes.wrap(objective)
    measured = crops.measured().to(device)
    optimizer = torch.optim.Adam(objective.coder.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99))

    def step_loss(step: int) -> Tensor:
        return wrapped(crops.batch(step, settings.batch, processes.rank, processes.count).to(device), step)

    progress = train(
        folder,
        Budget(settings.steps, settings.learning_rate, warm_up=min(100, settings.steps // 8)),
        wrapped,
        optimizer,
        step_loss,
        extra={"codebook": objective.average},
        evaluate=lambda: objective.measure(measured),
        processes=processes,
        made_with={"vqvae": plain(settings), "config": plain(config)},
    )
    figures = objective.measure(measured)
    return {**figures, "steps": progress.step, "minutes": progress.seconds / 60}


def load_level(folder: Path, vqvae: VQVAE, level: int) -> None:
    """Copy a trained level from its run's state into `vqvae`. Raises RunError."""
    path = folder / STATE
    state = read_state(path)
    coder = nn.ModuleDict({"coder": nn.ModuleList((vqvae.encoders[level], vqvae.decoders[level]))})
    try:
        assign(coder, state["model"].items(), path)
        vqvae.codebook(level).copy_(state["codebook"]["codebook"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise unfit(path, error) from None
