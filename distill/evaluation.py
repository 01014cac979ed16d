"""What a prior is worth, on held-out windows: bits per code, and how near a student is to its teacher."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..engine.prior import Prior
from . import losses
from .forward import Windows, forward
from .objectives import cross_entropy
from .prior import count_parameters
from .systems import TEACHER
from .work import Work


def agreement(student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    """How the code distributions of two networks compare at each position, from their logits [..., V]: tensors [...].

    kl: Kullback-Leibler divergence of the student from the teacher, in bits. top_1: 1 where their likeliest codes are
    the same. acceptance: 1 - total variation distance, the share of the student's codes that speculative sampling would
    keep (Leviathan et al. 2023, section 3.2).
    """
    log_p, log_q = teacher.double().log_softmax(-1), student.double().log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    return {
        "kl": losses.bits(1.0) * (p * (log_p - log_q)).sum(-1),
        "top_1": (student.argmax(-1) == teacher.argmax(-1)).double(),
        "acceptance": torch.minimum(p, q).sum(-1),
    }


@torch.no_grad()
def compare(prior: Prior, teacher: Prior | None, windows: Iterable[Windows]) -> dict[str, float]:
    """Held-out bits per code of `prior`, and its agreement with `teacher`: means over the windows."""
    values: dict[str, list[float]] = {}
    for window in windows:
        logits = forward(prior, window).logits
        found = {"bits": losses.bits(1.0) * cross_entropy(logits, window.codes)}
        if teacher is not None:
            found |= agreement(logits, forward(teacher, window).logits)
        for name, value in found.items():
            values.setdefault(name, []).append(float(value.mean()))
    return {name: sum(each) / len(each) for name, each in values.items()}


def evaluate(work: Work, name: str, level: int, per_song: int = 4) -> dict[str, Any]:
    """The figures of one system's prior at one level on `per_song` windows of each held-out song."""
    work.check_songs(name, level)
    prior = work.prior(name, level)
    teacher = work.prior(TEACHER, level) if name != TEACHER and work.is_done(TEACHER, level) else None
    windows = (window.to(work.device) for window in work.windows(level).measured(per_song))
    found = compare(prior, teacher, windows)
    # A teacher that was given has no run here.
    run = work.figures(name, level) or {"depth": prior.config.depth, "parameters": count_parameters(prior)}
    kept = ("depth", "parameters", "steps", "epochs", "codes", "minutes")
    return {"system": name, "level": level, **{key: run.get(key) for key in kept}, **found}


def code_usage(codes: Tensor, codebook_size: int) -> dict[str, float]:
    """How sampled codes [...] use the codebook: perplexity, and how many codes occur at all."""
    return {
        "perplexity": losses.perplexity(codes.flatten(), codebook_size),
        "codes_used": float(codes.unique().numel()),
    }
