"""A work folder: everything that training a stack leaves behind, each part a run that can be stopped and gone on with.

WORK/preset.json              preset, seed, settings changed with --set, and the teacher that was given: for all runs,
                              from the first on
WORK/corpus/                  the procedural corpus, where no other audio was given
WORK/vqvae/level_K/           one level of the VQ-VAE; audio.json in it says what it hears
WORK/codes/                   the code store
WORK/SYSTEM/level_K/          a prior of one of the paper's systems; shallow/ in it is what a teacher grew from
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..engine.prior import Prior
from ..engine.vqvae import VQVAE, fingerprint
from .audio_crops import AudioCrops
from .audio_folder import Scan, scan
from .code_store import CodeStore, StoreError, write_store
from .code_windows import CodeWindows
from .corpus import write_corpus
from .given_teacher import GivenTeacher
from .growth import deepened
from .objectives import LayerMatching, NextCode, Objective, SoftTargets
from .parallel import Processes
from .preset_file import PRESET, is_begun, settings_of, teacher_of
from .presets import PRESETS, Preset
from .prior import PriorTraining, load_averaged, train_prior
from .run_folder import FIGURES, check_same, read_figures, read_json, record, write_figures, write_json
from .settings import differences, plain, refuse_other
from .student import hear_as, new_student, share_embeddings
from .systems import TEACHER, UPSAMPLERS, System, system
from .trainer import RUN
from .vqvae import load_level, train_level

AUDIO = "audio.json"


class NotTrained(ValueError):
    """A run that another one needs is not done; the message says which command does it."""


@dataclass
class Work:
    """The runs of one preset and seed in `folder`, on `device`, by these `processes`.

    Raises:
        ValueError: the folder is of another preset or seed, its runs of other settings, or settings cannot be.
    """

    folder: Path
    preset_name: str
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    processes: Processes = field(default_factory=Processes)
    # None: the folder's, which are the preset's where nothing else was set.
    settings: Preset | None = None
    # A trained model whose VQ-VAE and priors are this folder's; None: the folder's, if it was begun with one.
    teacher: GivenTeacher | None = None
    # The preset, with the sizes of a teacher that was given, before --set.
    base: Preset = field(init=False, repr=False)
    _scans: dict[tuple[Path, float], Scan] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.preset_name not in PRESETS:
            raise ValueError(f"no preset {self.preset_name!r}; there are {', '.join(PRESETS)}")
        check_same(self.folder / PRESET, self._made_with)
        self.teacher = teacher_of(self.folder, self.teacher)
        self.base = PRESETS[self.preset_name]
        if self.teacher:
            self.base = self.teacher.fitted(self.base)
        held = settings_of(self.folder)
        if held and self.teacher:
            held = dataclasses.replace(held, config=self.teacher.config)
        if self.settings is None:
            self.settings = held
            return
        self.settings.check()
        if self.teacher and self.settings.config != self.teacher.config:
            raise ValueError(f"--set config: the sizes are those of {self.teacher.folder}")
        if (self.folder / PRESET).exists():
            self._check_settings(held or self.base)

    def _check_settings(self, held: Preset) -> None:
        """Refuse others than are `held`, unless nothing was made with those."""
        if is_begun(self.folder, self.teacher is not None) or (
            self.corpus.exists() and held.corpus != self.preset.corpus
        ):
            refuse_other(plain(held), plain(self.preset), self.folder, "choose another folder")

    @property
    def changed_settings(self) -> dict[str, Any]:
        """The settings that are not the preset's, by name."""
        return {name: value for name, value, _ in differences(plain(self.preset), plain(self.base))}

    @property
    def _made_with(self) -> dict[str, Any]:
        return {"preset": self.preset_name, "seed": self.seed}

    def claim(self) -> None:
        """Note whose folder it is; before the first run in it."""
        path = self.folder / PRESET
        check_same(path, self._made_with)
        made_with = self._made_with
        if self.preset != self.base:
            made_with["settings"] = plain(self.preset)
        if self.teacher:
            made_with["teacher"] = self.teacher.recorded()
        if self.processes.is_first and read_json(path) != made_with:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, made_with)

    def _record(self, path: Path, made_with: dict[str, Any]) -> None:
        check_same(path, made_with)
        if self.processes.is_first:
            record(path, made_with)

    def say(self, line: str) -> None:
        """Print a line, on the first process."""
        if self.processes.is_first:
            tqdm.write(line)

    @property
    def preset(self) -> Preset:
        return self.settings or self.base

    @property
    def levels(self) -> range:
        """All levels, the top first."""
        return range(self.preset.config.vqvae.levels - 1, -1, -1)

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus"

    @property
    def has_corpus(self) -> bool:
        """Whether all of it is there: labels are written last."""
        return (self.corpus / "labels.csv").exists()

    def run_folder(self, name: str, level: int) -> Path:
        """Where "vqvae" or a system keeps its run of a level."""
        return self.folder / name / f"level_{level}"

    def figures(self, name: str, level: int) -> dict[str, Any] | None:
        """What was measured at the end of a run; None if it is not done."""
        return read_figures(self.run_folder(name, level))

    def shallow_figures(self, level: int) -> dict[str, Any] | None:
        """The same of the network that the teacher grew from; None if it grew from none."""
        return read_figures(self.run_folder(TEACHER, level) / "shallow")

    def is_given(self, name: str) -> bool:
        """Whether "vqvae" or a system is that of a model that was given."""
        return self.teacher is not None and name in ("vqvae", TEACHER)

    def is_done(self, name: str, level: int) -> bool:
        return self.is_given(name) or (self.run_folder(name, level) / FIGURES).exists()

    def write_corpus(self) -> Path:
        corpus = self.preset.corpus
        self.claim()
        if self.processes.is_first:
            write_corpus(self.corpus, corpus.songs, corpus.seconds, self.seed)
        self.processes.wait()
        return self.corpus

    def train_vqvae(self, level: int, audio: Path, held_out: float | int | None = None) -> dict[str, Any]:
        """Train one level on a folder of audio, unless that is done; what is held out of it as for `scan`, by default
        as of the corpus. The figures. Raises ValueError where the run was begun with other songs."""
        self._refuse_given("vqvae")
        preset, config = self.preset, self.preset.config.vqvae
        folder, heard = self.run_folder("vqvae", level), self._heard(audio, held_out)
        if self.is_done("vqvae", level):
            check_same(folder / AUDIO, heard)
            return self.figures("vqvae", level) or {}
        self.claim()
        crops = AudioCrops(self._scan(audio, held_out), preset.crop, config.sample_rate, self.seed)
        self._record(folder / AUDIO, heard)
        if self.processes.sharded:
            self.say("vqvae: small enough to be whole in every process, so not sharded")
        group = dataclasses.replace(self.processes, sharded=False)
        figures = train_level(folder, config, level, crops, preset.vqvae[level], self.seed, self.device, group)
        return self._finish(folder, figures)

    def _scan(self, audio: Path, held_out: float | int | None) -> Scan:
        """What a folder holds; looked at and told once."""
        held_out = self.preset.corpus.held_out if held_out is None else held_out
        if (audio, held_out) not in self._scans:
            self._scans[audio, held_out] = scan(audio, held_out, self.seed, self._shortest)
            self.say(self._scans[audio, held_out].report())
        return self._scans[audio, held_out]

    def _heard(self, audio: Path, held_out: float | int | None) -> dict[str, Any]:
        """What a level's audio.json says of what it hears."""
        heard = {"audio": self._scan(audio, held_out).identity(self.preset.config.vqvae.sample_rate)}
        return heard | ({"shortest": self._shortest} if self._shortest else {})

    @property
    def _shortest(self) -> float:
        """Seconds of a song that is held out before shorter ones. In folders of earlier versions none are."""
        begun = [read_json(path) or {} for path in self.folder.glob(f"vqvae/level_*/{AUDIO}")]
        return self.preset.longest_window if all("shortest" in heard for heard in begun) else 0.0

    def vqvae(self, levels: Sequence[int]) -> VQVAE:
        """The trained levels; the others are as initialized. Raises NotTrained."""
        if self.teacher:
            return self.teacher.vqvae().to(self.device)
        vqvae = VQVAE(self.preset.config.vqvae)
        for level in levels:
            self.check(("vqvae", level))
            load_level(self.run_folder("vqvae", level), vqvae, level)
        return vqvae.to(self.device).eval().requires_grad_(False)

    def encode(self, audio: Path, held_out: float | int | None = None) -> CodeStore:
        """The codes of a folder of audio at all levels; `held_out` as for `train_vqvae`."""
        self.claim()
        vqvae = self.vqvae(self.levels)
        if self.processes.is_first:
            held_out = self.preset.corpus.held_out if held_out is None else held_out
            write_store(audio, self.folder / "codes", vqvae, held_out, self.seed, self._shortest)
        self.processes.wait()
        store = self.codes()
        self.say(store.report())
        encoded = store.identity()
        for level in self.levels:
            heard = (read_json(self.run_folder("vqvae", level) / AUDIO) or {}).get("audio", encoded)
            if heard != encoded:
                self.say(
                    f"note: vqvae level {level} was trained on {heard}, and the codes are of {encoded}: other songs, "
                    "or others of them held out (--held-out). Figures may be of songs that it was trained on"
                )
        return store

    @property
    def has_codes(self) -> bool:
        return (self.folder / "codes" / "manifest.json").exists()

    def codes(self) -> CodeStore:
        """Raises NotTrained."""
        if not self.has_codes:
            raise NotTrained(f"{self.folder} holds no codes yet: run `fastjukebox-train encode` first")
        return CodeStore(self.folder / "codes")

    def windows(self, level: int, counted: bool = False) -> CodeWindows:
        """Training windows of one level. counted: without what priors are told of them, which takes reading weights."""
        config = self.preset.config.priors[level]
        ratio = config.conditioner.upper_ratio if config.conditioner else 1
        codes = self.codes()
        told = self.teacher.told(level, self.device, codes) if self.teacher and not counted else None
        return CodeWindows(codes, level, config.window_len, ratio, self.seed, bool(config.conditioner), told)

    def train_system(self, name: str, level: int) -> dict[str, Any]:
        """Train the prior of a system at one level. Raises NotTrained where what it needs is not done."""
        recipe, preset = system(name), self.preset
        self._refuse_given(name)
        self.check(*((need, level) for need in recipe.needs))
        self.check_codes()
        for need in recipe.needs:
            self.check_songs(need, level)
        self.claim()
        windows = self.windows(level)
        self.say(windows.report())
        epoch = windows.epoch_steps(preset.prior.batch)
        steps = preset.steps(recipe, level, epoch)
        folder = self.run_folder(name, level)
        if self.training != preset.prior:
            self.say(f"{name}: sharded, so AdamW instead of Muon, which needs whole matrices")
        shallow = self._train_shallow(level, windows) if name == TEACHER else None
        torch.manual_seed(self.seed)
        objective = self._objective(recipe, level, shallow)
        settings = self.training.slower(preset.rate(recipe, level))
        progress, figures = train_prior(folder, objective, windows, steps, settings, self.processes)
        epochs = progress.step / epoch
        return self._finish(folder, {**figures, "epochs": epochs, "depth": objective.prior.config.depth})

    @property
    def training(self) -> PriorTraining:
        """How priors are trained; sharded ones with AdamW alone, since Muon needs whole matrices."""
        training = self.preset.prior
        return dataclasses.replace(training, matrix_learning_rate=None) if self.processes.sharded else training

    def _train_shallow(self, level: int, windows: CodeWindows) -> Prior | None:
        """The network that the teacher of a level grows from, or None; its run is kept in the teacher's folder."""
        preset = self.preset
        steps = preset.shallow_steps(level, windows.epoch_steps(preset.prior.batch))
        if not steps:
            return None
        config, folder = preset.shallow_config(level), self.run_folder(TEACHER, level) / "shallow"
        if not read_figures(folder):
            torch.manual_seed(self.seed)
            objective = NextCode(Prior(config).to(self.device), preset.prior.computing)
            _, figures = train_prior(folder, objective, windows, steps, self.training, self.processes)
            self._finish(folder, {**figures, "depth": config.depth})
        # From the run's state, which is whole where the trained network was divided over processes.
        prior = Prior(config)
        load_averaged(folder, prior)
        return prior.to(self.device)

    def _objective(self, recipe: System, level: int, shallow: Prior | None) -> Objective:
        preset, computing = self.preset, self.preset.prior.computing
        if recipe.teacher is None:
            config = preset.prior_config(recipe, level)
            prior = deepened(shallow, config.depth) if shallow else Prior(config)
            if self.teacher:
                hear_as(prior, self.prior(TEACHER, level))
            return NextCode(prior.to(self.device), computing)
        teacher = self.prior(recipe.teacher, level)
        if recipe.start is None:
            depth = preset.prior_config(recipe, level).depth
            student = new_student(teacher, depth, preset.distillation.copy_layers)
        else:
            student = self.prior(recipe.start, level)
        student.requires_grad_(True).train()
        hear_as(student, teacher)
        if preset.distillation.share_embeddings:
            share_embeddings(student)
        kind = LayerMatching if recipe.objective == "layers" else SoftTargets
        return kind(student, teacher, preset.distillation, computing)

    def prior(self, name: str, level: int) -> Prior:
        """The trained prior of a system, with its averaged weights. Raises NotTrained."""
        self.check((name, level))
        if self.teacher and name == TEACHER:
            return self.teacher.prior(level, self.device)
        prior = Prior(self.preset.prior_config(system(name), level))
        load_averaged(self.run_folder(name, level), prior)
        return prior.to(self.device).eval().requires_grad_(False)

    def source(self, name: str, level: int, own: Collection[int] | None = None) -> str:
        """The system whose prior stands at a level of the stack of `name`: its own, or that of UPSAMPLERS where it was
        trained at higher levels only, and at levels that are not among `own`. With a teacher that was given, that one's
        at all levels where it was not trained, and at those not among `own`."""
        if self.teacher:
            return name if self.is_done(name, level) and (own is None or level in own) else TEACHER
        if own is not None and level not in own:
            return UPSAMPLERS
        trained = [other for other in self.levels if self.is_done(name, other)]
        return name if level in trained or not trained or level > min(trained) else UPSAMPLERS

    def check_codes(self) -> None:
        """Raises StoreError where the codes are not those of the VQ-VAE that is there."""
        if not all(self.is_done("vqvae", level) for level in self.levels):
            return
        if self.has_codes and self.codes().fingerprint != fingerprint(self.vqvae(self.levels)):
            raise StoreError(
                f"{self.folder / 'codes'} holds codes of another VQ-VAE than {self.folder / 'vqvae'}: move that away, "
                "run `fastjukebox-train encode` again, and train what was trained on them anew"
            )

    def check_songs(self, name: str, level: int) -> None:
        """Raises StoreError where a system has learned codes of other songs, or of others held out, than are there."""
        folder, found = self.run_folder(name, level), self.codes().identity()
        # Runs of earlier versions do not say.
        trained_on = (read_json(folder / RUN) or {}).get("codes", found)
        if trained_on != found:
            raise StoreError(
                f"{folder} was trained on {trained_on}, and {self.folder / 'codes'} are of {found}: what is held out "
                "may be what it was trained on. Encode the same songs again, or move it away to train it anew"
            )

    def _refuse_given(self, name: str) -> None:
        if self.teacher and self.is_given(name):
            raise ValueError(
                f"{self.folder} has the {name} of {self.teacher.folder}, which is trained already: go on with "
                f"{'encode' if name == 'vqvae' else 'distill'}"
            )

    def check(self, *runs: tuple[str, int]) -> None:
        for name, level in runs:
            if not self.is_done(name, level):
                command = "vqvae" if name == "vqvae" else "distill" if system(name).teacher else "prior"
                option = "" if name == "vqvae" else f" --system {name}"
                raise NotTrained(
                    f"{self.run_folder(name, level)} is not done: run `fastjukebox-train {command}{option} "
                    f"--level {level}` first"
                )

    def _finish(self, folder: Path, figures: dict[str, Any]) -> dict[str, Any]:
        if self.processes.is_first:
            write_figures(folder, figures)
        self.processes.wait()
        return figures
