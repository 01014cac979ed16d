"""Sizes and lengths of everything that is trained: `tiny` for tests, `demo` for the stack that is shipped, `paper`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..engine import config as models
from ..engine.config import ConditionerConfig, JukeboxConfig, PriorConfig, VQVAEConfig
from ..engine.config_json import Config
from .growth import grown_groups
from .losses import RESOLUTIONS
from .objectives import Computing, Distillation
from .prior import PriorTraining
from .settings import above, at_least
from .student import student_config
from .systems import DRAFTS, TEACHER, System, system
from .vqvae import VQVAETraining


@dataclass(frozen=True)
class Corpus:
    """The procedural corpus: songs of `seconds`, some of them held out."""

    songs: int
    seconds: float
    held_out: int

    def __post_init__(self) -> None:
        at_least(self, 1, "songs")
        at_least(self, 0, "held_out")


@dataclass(frozen=True)
class Epochs:
    """Passes over the codes of the training songs, and how fast networks learn that do not start from nothing."""

    teacher: float
    layers: float
    prediction: float
    # Of the shallow network that the teacher grows from, before its own; 0: the teacher starts at its full depth.
    shallow: float = 0.0
    # Of a student without a teacher; None: as many as the others get in both stages, to be compared at equal steps.
    plain: float | None = None
    # Factors of the learning rates for networks that start from trained layers: teachers that grew, students of copies.
    grown_rate: float = 0.5
    copied_rate: float = 1.0
    # Of a student's second stage, whatever its layers started from; None: as in the first.
    prediction_rate: float | None = None
    # Of a draft's second stage; None: as a student's. Few layers have more to learn, both stages at the full rate.
    draft: float | None = None

    def __post_init__(self) -> None:
        at_least(self, 0.0, "teacher", "layers", "prediction", "shallow", "plain", "draft")
        above(self, 0.0, "grown_rate", "copied_rate", "prediction_rate")


@dataclass(frozen=True)
class Preset:
    """Everything that decides a stack, beside the audio and the seed. Tuples have one entry per level."""

    # The teacher's; students have fewer layers.
    config: JukeboxConfig
    corpus: Corpus
    # Samples of the VQ-VAE's training crops.
    crop: int
    vqvae: tuple[VQVAETraining, ...]
    prior: PriorTraining
    epochs: tuple[Epochs, ...]
    distillation: Distillation = field(default_factory=Distillation)
    # What the systems' layer counts mean here, where not themselves.
    depths: Mapping[int, int] = field(default_factory=dict)
    # Layers of the network that teachers grow from (growth.py), where epochs are given for it.
    shallow_depth: int = 18

    @property
    def longest_window(self) -> float:
        """Seconds of audio that a window of any level stands for at most."""
        vqvae = self.config.vqvae
        longest = max(prior.window_len * vqvae.samples_per_code(prior.level) for prior in self.config.priors)
        return longest / vqvae.sample_rate

    def check(self) -> None:
        """Raises ValueError where settings do not go together, in the names of `--set`."""
        half = max(resolution.n_fft for resolution in RESOLUTIONS) // 2
        unit = self.config.vqvae.samples_per_code(self.config.vqvae.levels - 1)
        if self.crop <= half or self.crop % unit:
            raise ValueError(f"crop must be a multiple of {unit}, above {half}; not {self.crop}")
        for level, training in enumerate(self.vqvae):
            if training.quantize_from >= training.steps:
                raise ValueError(
                    f"vqvae.{level}.quantize_from {training.quantize_from} must be below vqvae.{level}.steps "
                    f"{training.steps}: before it there is no codebook"
                )
        for level, epochs in enumerate(self.epochs):
            if epochs.shallow:
                try:
                    grown_groups(self.shallow_config(level), self.prior_config(system(TEACHER), level).depth)
                except ValueError as error:
                    raise ValueError(f"shallow_depth: {error}") from None

    def prior_config(self, system: System, level: int) -> PriorConfig:
        config = self.config.priors[level]
        if system.name == TEACHER:
            return dataclasses.replace(config, depth=self.depths.get(system.layers, config.depth))
        return student_config(config, self.depths.get(system.layers, system.layers))

    def shallow_config(self, level: int) -> PriorConfig:
        """The network that the teacher grows from."""
        return dataclasses.replace(self.config.priors[level], depth=self.shallow_depth)

    def shallow_steps(self, level: int, epoch_steps: int) -> int:
        """Batches of the network that the teacher grows from; 0 if it grows from none."""
        return round(self.epochs[level].shallow * epoch_steps)

    def rate(self, system: System, level: int) -> float:
        """The factor of a system's learning rates: less for what is trained already."""
        epochs = self.epochs[level]
        if system.name == TEACHER:
            return epochs.grown_rate if epochs.shallow else 1.0
        if system.name in DRAFTS:
            return 1.0
        if system.objective == "prediction" and epochs.prediction_rate is not None:
            return epochs.prediction_rate
        return epochs.copied_rate if system.teacher and self.distillation.copy_layers else 1.0

    def steps(self, system: System, level: int, epoch_steps: int) -> int:
        """Batches that a system is trained for, beside those of `shallow_steps`."""
        epochs = self.epochs[level]
        plain = epochs.layers + epochs.prediction if epochs.plain is None else epochs.plain
        count = {
            "next_code": epochs.teacher if system.name == TEACHER else plain,
            "layers": epochs.layers,
            "prediction": epochs.prediction if system.name not in DRAFTS or epochs.draft is None else epochs.draft,
        }[system.objective]
        return max(1, round(count * epoch_steps))


def _stack(vqvae: VQVAEConfig, width: int, depth: int, context_len: int, num_rows: int) -> JukeboxConfig:
    """A prior of `width` per level; the conditioners are half as wide."""
    priors = []
    for level in range(vqvae.levels):
        conditioner = None
        if level + 1 < vqvae.levels:
            stages, stride = vqvae.downs[level + 1], vqvae.strides[level + 1]
            conditioner = ConditionerConfig(width // 2, 4, stages, stride)
        priors.append(
            PriorConfig(level, width, depth, 2, context_len, num_rows, vqvae.codebook_size, conditioner=conditioner)
        )
    return JukeboxConfig(vqvae, tuple(priors))


def _paper() -> JukeboxConfig:
    names = ("upsampler-0-72", "upsampler-1-72", "top-72")
    return JukeboxConfig(
        _instance(VQVAEConfig, models.PRESETS["vqvae"]),
        tuple(_instance(PriorConfig, models.PRESETS[name]) for name in names),
    )


def _instance(kind: type[Config], config: object) -> Config:
    assert isinstance(config, kind)
    return config


PRESETS: dict[str, Preset] = {
    # The whole path in seconds.
    "tiny": Preset(
        config=_stack(VQVAEConfig(codebook_size=16, code_dim=8, width=8, depth=1, multipliers=(1, 1, 1)), 16, 9, 32, 4),
        corpus=Corpus(songs=3, seconds=1.0, held_out=1),
        crop=8192,
        vqvae=(VQVAETraining(steps=3, quantize_from=1),) * 3,
        prior=PriorTraining(batch=2, measured_windows=1, matrix_learning_rate=0.02),
        distillation=Distillation(share_embeddings=True),
        epochs=(Epochs(0.02, 0.01, 0.01, 0.01), Epochs(0.1, 0.05, 0.05), Epochs(1, 0.5, 0.5, 0.5)),
        depths={72: 9, 24: 6, 18: 3},
        shallow_depth=3,
    ),
    "demo": Preset(
        config=_stack(
            VQVAEConfig(codebook_size=512, code_dim=32, width=32, depth=3, multipliers=(1, 1, 1)), 128, 72, 2048, 64
        ),
        corpus=Corpus(songs=300, seconds=24.0, held_out=12),
        crop=16384,
        # The bottom level is the one that is heard: there, quiet high bands count more.
        vqvae=(
            VQVAETraining(steps=2500, log_spectral=0.5),
            VQVAETraining(steps=1600),
            VQVAETraining(steps=1800),
        ),
        prior=PriorTraining(batch=2, learning_rate=3e-3, matrix_learning_rate=0.02, warm_up=50),
        # Students start from the teacher's layers, which are trained already; one copy of the embeddings serves all.
        distillation=Distillation(copy_layers=True, share_embeddings=True),
        # Made for two CPU cores: a step at 18 layers costs a quarter of one at 72. Some 4 to 9 million codes at each
        # level at 18 layers, 1.2 million at 72, and 1.2 to 1.3 million for a student; 2.2 million for plain ones. The
        # longer a network has learned before it grows, the less its layers should be moved at once.
        epochs=(
            Epochs(0.03, 0.005, 0.03, shallow=0.16, grown_rate=0.08, copied_rate=0.3, prediction_rate=0.08, draft=0.13),
            Epochs(0.13, 0.026, 0.11, shallow=1.0, grown_rate=0.08, copied_rate=0.5, prediction_rate=0.12, draft=0.4),
            Epochs(teacher=0.52, layers=0.1, prediction=0.42, shallow=1.9, plain=0.93, draft=1.2),
        ),
    ),
    # Section 4: layer losses for 20 epochs, then the prediction loss for 50; about 300 songs of one performer.
    "paper": Preset(
        config=_paper(),
        corpus=Corpus(songs=300, seconds=180.0, held_out=15),
        crop=131072,
        vqvae=(VQVAETraining(steps=384_000, batch=32, commitment=0.02, codebook_decay=0.99),) * 3,
        # Eight windows at a time are what a teacher and a student's first stage have room for on a card of 80 GB.
        prior=PriorTraining(
            batch=16,
            micro_batch=8,
            learning_rate=3e-4,
            warm_up=1000,
            computing=Computing(precision="bf16", recompute=True),
        ),
        epochs=(Epochs(70, 20, 50),) * 3,
    ),
}

# For what distillation alone is worth: students of new layers at the top level, as many steps as the plain ones.
PRESETS["demo-new-layers"] = dataclasses.replace(
    PRESETS["demo"],
    distillation=Distillation(),
    epochs=(
        *(dataclasses.replace(epochs, prediction_rate=None) for epochs in PRESETS["demo"].epochs[:2]),
        dataclasses.replace(PRESETS["demo"].epochs[2], layers=0.27, prediction=0.66),
    ),
)
