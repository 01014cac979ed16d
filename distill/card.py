"""The model card of a work folder: what the networks were trained on, how, how long, and what came out of it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from typing import Any

from .systems import ALL, TEACHER, UPSAMPLERS
from .work import Work


def card(work: Work) -> str:
    """Markdown. Every figure is one that the runs left behind."""
    config = work.preset.config
    vqvae = config.vqvae
    vqvae_rows, prior_rows, minutes = [], [], 0.0
    for level in sorted(work.levels):
        if found := work.figures("vqvae", level):
            minutes += found["minutes"]
            unit, snr, spectral = vqvae.samples_per_code(level), f"{found['snr_db']:.1f}", f"{found['spectral']:.3f}"
            took, use = (found["steps"], f"{found['minutes']:.0f}"), (f"{found['perplexity']:.0f}", found["codes_used"])
            vqvae_rows.append((level, unit, *took, snr, spectral, use[0], f"{use[1]:.0f}"))
    for name in ALL:
        for level in work.levels:
            if found := work.figures(name, level):
                minutes += found["minutes"]
                prior_rows.append((name, level, *_prior_row(found)))
                if shallow := work.shallow_figures(level) if name == TEACHER else None:
                    minutes += shallow["minutes"]
                    prior_rows.append((f"{name}, before it grew", level, *_prior_row(shallow)))
    widths, windows = (
        " and ".join(dict.fromkeys(str(getattr(prior, size)) for prior in config.priors))
        for size in ("width", "window_len")
    )
    vqvae_header = ("level", "samples per code", "steps", "minutes", "SNR dB", "spectral error", "perplexity", "in use")
    prior_header = ("system", "level", "layers", "parameters", "steps", "codes seen", "minutes", "held-out bits")
    shared = ""
    if work.preset.distillation.share_embeddings:
        kept = "embeddings, start tokens, heads and conditioners of their teachers"
        shared = f"- Students keep the {kept}, which are stored once.\n"
    grows = ""
    if any(work.shallow_figures(level) for level in work.levels):
        grows = (
            " A teacher grows: a shallow network\nlearns first, then layers that do nothing at first are put between "
            "its own, and all of them learn."
        )
    about, data, licence = _corpus_texts(work) if _is_of_the_corpus(work) else _audio_texts(work)
    elsewhere = f"A system that was trained or exported at the top level only has the upsamplers of {UPSAMPLERS}."
    rows = _table(vqvae_header, vqvae_rows)
    if work.teacher:
        given = f"`{work.teacher.folder.name}`, fingerprint {work.teacher.fingerprint}"
        about += f"\nTheir teacher and VQ-VAE were given: {given}."
        licence = "that of the teacher and of the audio decides; Fast Jukebox knows nothing about them."
        elsewhere = "A system has the teacher's priors at the levels where it was not trained."
        rows = "The teacher's."
    return f"""# {work.preset_name.capitalize()} stack: model card

{about}

- Data: {data}
- Commands: {_commands(work)}
- Time: {minutes / 60:.1f} hours over all runs together, on the machine that trained them.
- Weights: FP16 safetensors. Priors have width {widths} and windows of {windows} codes.
{shared}- {elsewhere}
- Licence: {licence}

## VQ-VAE

{vqvae.codebook_size} codes of {vqvae.code_dim} dimensions per level. The spectral error is |difference| / |target| of
magnitude spectrograms over three resolutions; a higher level keeps less of the waveform's phase, hence its lower SNR.

{rows}

## Priors

A code that could be anything would cost {vqvae.codebook_size.bit_length() - 1} bits.{grows}

{_table(prior_header, prior_rows)}
"""


def _is_of_the_corpus(work: Work) -> bool:
    """Whether the codes, or the VQ-VAE as long as there are none, are of the corpus."""
    names = [f"song-{index:04d}.flac" for index in range(work.preset.corpus.songs)]
    return work.corpus.exists() and (not work.has_codes or [song.path for song in work.codes().songs] == names)


def _options(work: Work) -> str:
    """Of every command that made the stack."""
    words = ["--preset", work.preset_name, "--seed", str(work.seed)]
    for name, value in work.changed_settings.items():
        words += ["--set", f"{name}={json.dumps(value)}"]
    return shlex.join(words)


def _commands(work: Work) -> str:
    """Those that made the stack."""
    teacher = " --teacher MODEL" if work.teacher else ""
    if _is_of_the_corpus(work):
        stack = f"`fastjukebox-train stack --work WORK{teacher} {_options(work)}`"
        return f"{stack}, then\n  `fastjukebox-train export` for each system."
    held_out = f" --held-out {work.codes().held_out:g}" if work.has_codes else ""
    first, others = f"vqvae --audio FOLDER{held_out}", "`encode` likewise, `prior` and `distill`"
    if work.teacher:
        first, others = f"encode{teacher} --audio FOLDER{held_out}", "then `distill`"
    return (
        f"`fastjukebox-train {first}`, {others}, each with\n  `{_options(work)}`, then\n"
        "  `fastjukebox-train export` for each system."
    )


def _corpus_texts(work: Work) -> tuple[str, str, str]:
    """What the stack is, its data and licence, where all is the corpus."""
    corpus, rate = work.preset.corpus, work.preset.config.vqvae.sample_rate
    return (
        "Three-level stacks trained by this repository's own code on music that it renders itself. They are there so "
        "that a fresh\nclone can make audible music, and so that the whole path can be tested; they are no models of "
        "recorded music.",
        f"{corpus.songs} songs of {corpus.seconds:g} s from `distill/corpus.py`, seed {work.seed}, {rate} Hz,\n"
        f"  mono; {corpus.held_out} of them are held out, and every figure of a prior is measured on those.",
        "MIT, as the repository; the data is generated, so no other licence applies.",
    )


def _audio_texts(work: Work) -> tuple[str, str, str]:
    """The same of a user's own audio."""
    data = f"a folder of audio, {work.preset.config.vqvae.sample_rate} Hz, mono; it is not encoded yet."
    if work.has_codes:
        store = work.codes()
        minutes, count = sum(song.seconds for song in store.songs) / 60, len(store.indices("held_out"))
        data = (
            f"{len(store.songs)} songs of a folder of audio, {minutes:.1f} minutes, taken as {store.sample_rate} Hz "
            f"mono;\n  {count} of them are held out, and every figure of a prior is measured on those."
        )
    return (
        "Three-level stacks trained by Fast Jukebox on a folder of audio.",
        data,
        "that of the audio decides; Fast Jukebox knows nothing about it.",
    )


def _prior_row(found: dict[str, Any]) -> tuple[str, ...]:
    codes = f"{found['codes'] / 1e6:.1f} M"
    minutes = f"{found['minutes']:.0f}"
    return (
        str(found["depth"]),
        f"{found['parameters']:,}",
        str(found["steps"]),
        codes,
        minutes,
        f"{found['held_out_bits']:.2f}",
    )


def _table(header: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    lines = [header, ["---"] * len(list(header)), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
