"""The story from a checkpoint to audio: load, sample, continue, upsample, stream, resume."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import checkpoint
from .audio import AudioError, AudioLike, read_audio
from .decoder import choose_backend
from .prior import Prior
from .progress import ProgressCallback
from .result import Result
from .runs import Request, Run, RunError
from .sampler import CodesLike, SampleOptions, Sampling, SamplingParams, as_codes, whole_number
from .speculative_decoder import check_drafts, with_drafts
from .threads import usable_threads
from .vqvae import fingerprint

if TYPE_CHECKING:
    from typing_extensions import Unpack

logger = logging.getLogger("fastjukebox")
# The demo stack is student-18's; the others share what they can with it.
MODELS = {
    "demo": checkpoint.DEMO,
    "demo-3": checkpoint.DEMO / "student-3",
    "demo-24": checkpoint.DEMO / "student-24",
    "demo-72": checkpoint.DEMO / "teacher-72",
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Jukebox:
    """A VQ-VAE and its priors, ready to sample.

    A level's prior is loaded when it is sampled. Priors that are small together (256 MiB; on a GPU a quarter of its
    memory, if that is more) stay loaded. Larger ones are loaded one at a time in the order by level, and all at once in
    that by time (`stream`).
    """

    # Priors whose files hold no more together stay in memory, so that the next request finds them there.
    KEPT_BYTES = 1 << 28

    def __init__(
        self, folder: Path, device: torch.device, dtype: torch.dtype, backend: str, draft: Jukebox | None = None
    ) -> None:
        self.folder, self.device, self.dtype = folder, device, dtype
        self.config = checkpoint.load_config(folder)
        self.backend = choose_backend(backend, device, dtype)
        self.vqvae = checkpoint.load_vqvae(folder, device)
        # Per level, of artists and genres; None where the folder has none.
        self.names = [checkpoint.load_names(folder, prior.level) for prior in self.config.priors]
        self._priors: dict[int, Prior] = {}
        self._keeps_priors = checkpoint.prior_bytes(folder, self.config) <= self._kept_bytes()
        self.draft = draft
        if draft:
            if fingerprint(draft.vqvae) != fingerprint(self.vqvae):
                raise ValueError(f"{draft.folder} cannot draft for {folder}: its codes are those of another VQ-VAE")
            check_drafts(self.config.priors, draft.config.priors)
            shared = checkpoint.shared_priors(folder, draft.folder)
            self.backend = with_drafts(self.backend, lambda level: draft.prior(level, resident=False), shared)
        logger.info("%s on %s in %s with the %s decoder", folder.name, device, _dtype_name(dtype), self.backend.name)

    @classmethod
    def from_pretrained(
        cls,
        path_or_name: str | Path = "demo",
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = None,
        backend: str = "auto",
        draft: str | Path | None = None,
    ) -> Jukebox:
        """The model in a checkpoint folder, or one that comes with the package ("demo").

        device: "auto" is "cuda" where there is one, else "cpu". dtype: of the priors; by default float32 on CPUs and
        float16 elsewhere. backend: "auto" takes the fastest decoder that can run and keeps the weights as they are;
        "auto-int8" the fastest with weights rounded to int8, or what "auto" takes where there is none. draft: a smaller
        model of the same codes, a student of this one, that guesses codes ahead (speculative_decoder.py): the result
        is to the bit the same, of wide networks and few items sooner; on a GPU with backend "triton" or "triton-int8".

        Raises:
            CheckpointError: not a checkpoint folder, or a damaged one.
            ValueError: a device, dtype, backend or draft that cannot be used here; says why.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"device {str(device)!r} cannot be used: {reason}") from None
        if dtype is None:
            dtype = torch.float32 if device.type == "cpu" else torch.float16
        name = _dtype_name(dtype) if isinstance(dtype, torch.dtype) else dtype
        if name not in DTYPES:
            raise ValueError(f"dtype must be {', '.join(DTYPES)}, not {name!r}")
        dtype = DTYPES[name]
        drafts = None if draft is None else cls(model_folder(draft), device, dtype, backend)
        return cls(model_folder(path_or_name), device, dtype, backend, drafts)

    def _kept_bytes(self) -> int:
        if self.device.type != "cuda":
            return self.KEPT_BYTES
        return max(self.KEPT_BYTES, torch.cuda.get_device_properties(self.device).total_memory // 4)

    @property
    def sample_rate(self) -> int:
        return self.config.vqvae.sample_rate

    def prior(self, level: int, resident: bool = True) -> Prior:
        """The prior of `level`, loaded if need be; unless `resident`, all others are dropped if they are large. For a
        native decoder the matrices of large ones are as stored (see `checkpoint.load_prior`)."""
        if not resident and not self._keeps_priors:
            self._priors = {known: prior for known, prior in self._priors.items() if known == level}
        prior = self._priors.get(level)
        if prior is None:
            # What stays is not left in the file's pages: they change if the file is written over.
            in_file = self.backend.native and not self._keeps_priors
            prior = checkpoint.load_prior(self.folder, level, self.device, self.dtype, keep_fp16=in_file)
            self._priors[level] = prior
        return prior

    def encode(self, audio: AudioLike, sample_rate: int | None = None) -> list[Tensor]:
        """Codes per level [items, n], the finest first, of a file or an array at `sample_rate`, by default the model's.
        What is left over after the last whole top-level code is left out. Raises AudioError."""
        samples = read_audio(audio, self.sample_rate, sample_rate)
        levels = self.config.vqvae.levels
        unit = self.config.vqvae.samples_per_code(levels - 1)
        whole = samples.shape[1] // unit * unit
        if not whole:
            raise AudioError(
                f"{samples.shape[1]} samples at {self.sample_rate} Hz are less than one top-level code, {unit} samples"
            )
        samples = samples[:, :whole].to(self.device)
        return [self.vqvae.encode(samples, level).cpu() for level in range(levels)]

    def decode(self, codes: CodesLike, level: int = 0) -> Tensor:
        """Audio, FP32 [items, samples], of codes [items, n] or [n] of a level. Raises ValueError on what is no codes,
        and on a level or codes out of range."""
        size, levels = self.config.vqvae.codebook_size, self.config.vqvae.levels
        if whole_number(level) not in range(levels):
            raise ValueError(f"level {level!r} does not exist; the model has levels 0 to {levels - 1}")
        known = as_codes(codes, level)
        if not known.numel() or not 0 <= int(known.min()) <= int(known.max()) < size:
            raise ValueError(f"codes must be [items, n], n > 0, with values 0 to {size - 1}; got {tuple(known.shape)}")
        return self.vqvae.decode(known.to(self.device), level).cpu()

    def sample(
        self,
        params: SamplingParams,
        codes: Sequence[CodesLike | None] | None = None,
        *,
        order: str = "level",
        run_dir: str | Path | None = None,
        overwrite: bool = False,
        output: str | None = None,
        progress: ProgressCallback | None = None,
    ) -> Result:
        """Sample `params.num_samples` items.

        codes: per level [items, n] (or [1, n] or [n] for all items), the finest first, that are given, of this
            model's VQ-VAE; None where there are none. Every level goes on from its own.
        order: "level", one prior in memory at a time, or "time"; both give the same codes. Where priors are small and
            there are several cores, windows of all levels are sampled at the same time instead (overlap.py).
        run_dir: saved there again and again; `resume` goes on from it. `overwrite` replaces a run that stands there.
        output: kept in the run for `resume` on the command line.
        progress: called with Progress(done, total, level, eta), counted in codes.

        Raises:
            ValueError: parameters, codes or lengths that make no sense; says which.
            RunError: the run directory cannot be used.
        """
        sampling = self._prepare(params, codes)
        # Raises for another `order` before a run is made.
        sampling.windows(order)
        run = self._create_run(sampling, run_dir, overwrite, output)
        return self._finish(sampling, run, order, progress)

    def continue_audio(
        self,
        prompt: AudioLike,
        params: SamplingParams,
        sample_rate: int | None = None,
        **options: Unpack[SampleOptions],
    ) -> Result:
        """Go on from audio, to `params.seconds` in all; the prompt opens the result, as the VQ-VAE hears it.

        prompt: a file, or an array [samples] or [items, samples] at `sample_rate`. The rest as in `sample`.

        Raises:
            AudioError (ValueError): the prompt cannot be read.
            ValueError: it leaves nothing to sample; and what `sample` raises.
        """
        if params.seconds is None:
            raise ValueError("seconds is needed: the length of the result, prompt included")
        samples = read_audio(prompt, self.sample_rate, sample_rate)
        if samples.shape[1] >= round(params.seconds * self.sample_rate):
            raise ValueError(
                f"the prompt, {samples.shape[1] / self.sample_rate:.2f} s, leaves nothing to sample in a result of "
                f"{params.seconds:g} s: ask for more seconds, or cut the prompt"
            )
        return self.sample(params, self.encode(samples), **options)

    def upsample(
        self, codes: Sequence[CodesLike | None], params: SamplingParams, **options: Unpack[SampleOptions]
    ) -> Result:
        """Sample the levels below the given ones.

        codes: per level, the finest first; None or empty for the levels to be sampled. `params.seconds` is at most, and
        by default, what the coarsest given level covers. The rest as in `sample`. Raises ValueError where no level is
        given, or it covers less than is asked for, and what `sample` raises.
        """
        known = self._known(codes)
        given = [level for level, tensor in enumerate(known) if tensor.shape[1]]
        if not given:
            raise ValueError(f"upsample needs codes of a level above 0, as a list of {len(known)}, the finest first")
        covered = known[given[-1]].shape[1] * self.config.vqvae.samples_per_code(given[-1])
        if params.seconds is None:
            params = replace(params, seconds=covered / self.sample_rate)
        elif round(params.seconds * self.sample_rate) > covered:
            raise ValueError(
                f"the level {given[-1]} codes cover {covered / self.sample_rate:.3f} s, not {params.seconds:g} s: "
                "leave out the seconds, or let `sample` go on from these codes"
            )
        return self.sample(params, known, **options)

    def stream(
        self,
        params: SamplingParams,
        codes: Sequence[CodesLike | None] | None = None,
        *,
        run_dir: str | Path | None = None,
        overwrite: bool = False,
        output: str | None = None,
        progress: ProgressCallback | None = None,
    ) -> Generator[Tensor, None, None]:
        """Audio in chunks [items, samples], each as soon as its codes exist; joined they are `sample`'s audio.

        All priors are in memory. Takes and raises what `sample` does; what is wrong with the request before the first
        chunk is asked for. Where windows are sampled at the same time, that goes on while the caller has a chunk.
        """
        sampling = self._prepare(params, codes)
        run = self._create_run(sampling, run_dir, overwrite, output)
        return self._chunks(sampling, run, "time", progress)

    @classmethod
    def resume(
        cls,
        run_dir: str | Path,
        progress: ProgressCallback | None = None,
        model: str | Path | None = None,
        draft: str | Path | None = None,
    ) -> Result:
        """Go on with a run to the result that an undisturbed run gives. `model`: where its weights are now, if they
        have moved. `draft`: as for `from_pretrained`, whatever the run was begun with.

        Raises:
            RunError: no run, one that another process works on, or one that was begun with other weights.
            ValueError: the device or the decoder that it was begun with is not here.
        """
        run = Run.reopen(Path(run_dir))
        try:
            jukebox, sampling = cls._resumed(run, model, draft)
        except BaseException:
            run.release()
            raise
        return jukebox._finish(sampling, run, "level", progress)

    @classmethod
    def _resumed(cls, run: Run, model: str | Path | None, draft: str | Path | None) -> tuple[Jukebox, Sampling]:
        request = run.request
        folder = Path(request.model) if model is None else model_folder(model)
        try:
            weights = checkpoint.fingerprint(folder)
        except OSError as error:
            why = f"{error.strerror}; it has moved? --model says where to"
            raise RunError(f"{run.folder} needs its model, in {folder}: {why}") from None
        if weights != request.fingerprint:
            raise RunError(f"{run.folder} was begun with other weights than {folder} holds")
        jukebox = cls.from_pretrained(folder, request.device, request.dtype, request.backend, draft)
        codes = run.load()
        try:
            return jukebox, Sampling(jukebox.config, request.params, request.samples, codes, jukebox.names, begun=True)
        except ValueError as error:
            raise RunError(f"{run.folder}: codes.safetensors or request.json is not of this run: {error}") from None

    def _known(self, codes: Sequence[CodesLike | None] | None) -> list[Tensor]:
        """Codes that are given, per level [items, n], [1, 0] where there are none."""
        levels = self.config.vqvae.levels
        if codes is None:
            codes = [None] * levels
        if not isinstance(codes, (list, tuple)) or len(codes) != levels:
            count = f", not of {len(codes)}" if isinstance(codes, (list, tuple)) else ""
            raise ValueError(f"codes must be a list of {levels} levels, the finest first{count}")
        return [as_codes(given, level) for level, given in enumerate(codes)]

    def _prepare(self, params: SamplingParams, codes: Sequence[CodesLike | None] | None) -> Sampling:
        if params.seconds is None:
            raise ValueError("seconds is needed: the length of the result")
        for jukebox in (self, self.draft):
            if jukebox:
                jukebox._check_files(params.level)
        samples = max(1, round(params.seconds * self.sample_rate))
        known = [tensor.expand(params.num_samples, -1) if len(tensor) == 1 else tensor for tensor in self._known(codes)]
        sampling = Sampling(self.config, params, samples, known, self.names)
        if sampling.filled[params.level] >= sampling.plans[params.level].length:
            raise ValueError(
                f"the level {params.level} codes given fill {params.seconds:g} s: nothing is left to sample"
            )
        return sampling

    def _check_files(self, level: int) -> None:
        """Raises CheckpointError where one is missing: not when the levels above have been sampled for hours."""
        for prior in self.config.priors:
            if prior.level < level or prior.level in self._priors:
                continue
            for path in checkpoint.network_paths(self.folder, checkpoint.prior_file(prior.level)):
                if not path.exists():
                    raise checkpoint.CheckpointError(f"{path} does not exist: sampling down to level {level} needs it")

    def _create_run(
        self, sampling: Sampling, run_dir: str | Path | None, overwrite: bool, output: str | None
    ) -> Run | None:
        if run_dir is None:
            return None
        request = Request(
            params=sampling.params,
            samples=sampling.samples,
            model=str(self.folder.resolve()),
            fingerprint=checkpoint.fingerprint(self.folder),
            backend=self.backend.name,
            device=str(self.device),
            dtype=_dtype_name(self.dtype),
            output=output,
            vqvae=fingerprint(self.vqvae),
        )
        return Run.create(Path(run_dir), request, sampling.known, overwrite)

    def _finish(self, sampling: Sampling, run: Run | None, order: str, progress: ProgressCallback | None) -> Result:
        audio = torch.cat(list(self._chunks(sampling, run, order, progress)), dim=1)
        return Result(audio, self.sample_rate, sampling.known)

    def _chunks(
        self, sampling: Sampling, run: Run | None, order: str, progress: ProgressCallback | None
    ) -> Generator[Tensor, None, None]:
        """Samples, saves, and decodes to audio what can be: blocks as soon as their codes and the margin are there."""
        level = sampling.params.level
        step, margin = self.vqvae.block_codes(level)
        length, sent, unsaved = sampling.segments[level].total, 0, False
        overlapped = self.backend.native and self._keeps_priors and usable_threads() > 1

        def ready() -> Iterator[Tensor]:
            nonlocal sent
            filled = sampling.ready(level)
            while sent < length and (filled >= length or filled >= sent + step + margin):
                stop = min(sent + step, length)
                yield self._audio(sampling, sent, stop)
                sent = stop

        try:
            yield from ready()
            # Closed whatever happens here: no thread goes on with a request that has failed.
            with closing(sampling.run(self.prior, self.backend, order, progress, overlapped)) as windows:
                for _ in windows:
                    unsaved = run is not None
                    if run and run.is_due:
                        unsaved = False
                        run.save(sampling.known)
                    yield from ready()
        finally:
            # Also of a request that was stopped or has failed.
            if run and unsaved:
                run.save(sampling.known)
            if run:
                run.release()

    def _audio(self, sampling: Sampling, start: int, stop: int) -> Tensor:
        """Audio of codes start ... stop - 1 of the level that is decoded, cut at the requested length."""
        level = sampling.params.level
        codes = sampling.whole(level)[:, : sampling.segments[level].total].to(self.device)
        audio = sampling.compute(lambda: self.vqvae.decode(codes, level, start, stop).cpu())
        return audio[:, : max(0, sampling.samples - start * self.config.vqvae.samples_per_code(level))]


def model_folder(path_or_name: str | Path) -> Path:
    """Of a name of MODELS, or a path."""
    return MODELS.get(str(path_or_name), Path(path_or_name).expanduser())


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
