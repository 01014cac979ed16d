"""What priors are trained for: modules that turn a batch of windows into a loss, so that data-parallel wrappers see one
forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine.prior import Prior
from ..kernels import reference
from .forward import Trace, Windows, forward
from .student import Mapping, imitated, layer_groups

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Computing:
    """How a pass is computed: matrix products in `precision` over FP32 weights, layers recomputed in the backward."""

    precision: str = "fp32"
    recompute: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be {', '.join(PRECISIONS)}; not {self.precision!r}")

    def autocast(self, device: torch.device) -> torch.autocast:
        dtype = PRECISIONS[self.precision]
        return torch.autocast(device.type, dtype if dtype != torch.float32 else None, dtype != torch.float32)


class Objective(nn.Module):
    """`prior` is trained; `terms` are the parts of the last loss, for the log."""

    def __init__(self, prior: Prior, computing: Computing) -> None:
        super().__init__()
        self.prior, self.computing = prior, computing
        self.terms: dict[str, Tensor] = {}

    def forward(self, windows: Windows, measured: bool = False) -> Tensor:
        """The loss; or, `measured`, the mean cross-entropy in nats per code, whatever the objective."""
        if measured:
            return cross_entropy(forward(self.prior, windows).logits, windows.codes)
        with self.computing.autocast(windows.codes.device):
            terms = self.losses(windows)
        self.terms = {name: value.detach() for name, value in terms.items()}
        return torch.stack(list(terms.values())).sum()

    def losses(self, windows: Windows) -> dict[str, Tensor]:
        """The terms of the loss, weighted: scalars."""
        raise NotImplementedError


class NextCode(Objective):
    """Mean cross-entropy in nats per code: how a teacher, or a student without one, is trained."""

    def losses(self, windows: Windows) -> dict[str, Tensor]:
        logits = forward(self.prior, windows, recompute=self.computing.recompute).logits
        return {"cross_entropy": cross_entropy(logits, windows.codes)}


@dataclass(frozen=True)
class Distillation:
    """The weights of a student's losses, which layers it imitates, what its own start from, and whether it keeps the
    teacher's embeddings, head and conditioner as they are."""

    hidden: float = 1.0
    attention: float = 1.0
    temperature: float = 1.0
    mapping: Mapping = "last"
    copy_layers: bool = False
    share_embeddings: bool = False

    def __post_init__(self) -> None:
        if self.mapping not in get_args(Mapping):
            raise ValueError(f"mapping must be {', '.join(get_args(Mapping))}; not {self.mapping!r}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be more than 0; not {self.temperature}")


class WithTeacher(Objective):
    """The teacher runs once per batch, without gradients, and is no part of this module's state."""

    def __init__(self, student: Prior, teacher: Prior, settings: Distillation, computing: Computing) -> None:
        super().__init__(student, computing)
        self._teacher = (teacher,)
        self.settings = settings
        groups = layer_groups(teacher.config.layer_patterns, student.config.layer_patterns)
        self.mapped = imitated(groups, settings.mapping)

    def traces(self, windows: Windows, layers: bool) -> tuple[Trace, Trace]:
        """The student's and the teacher's; `layers`: with what the mapped layers give."""
        with torch.no_grad():
            teacher = forward(self._teacher[0], windows, self.mapped if layers else ())
        wanted = range(self.prior.config.depth) if layers else ()
        return forward(self.prior, windows, wanted, self.computing.recompute), teacher


class LayerMatching(WithTeacher):
    """Stage one: mean squared error of hidden states (Eq. 4) and distance of attention maps, each the mean over the
    student's layers and the teacher layers mapped to them; those that attend to lyrics have hidden states alone."""

    def __init__(self, student: Prior, teacher: Prior, settings: Distillation, computing: Computing) -> None:
        super().__init__(student, teacher, settings, computing)
        # No gradient reaches it, for which data-parallel processes would wait.
        if student.own_head is not None:
            student.own_head.requires_grad_(False)

    def losses(self, windows: Windows) -> dict[str, Tensor]:
        student, teacher = self.traces(windows, layers=True)
        errors = [F.mse_loss(ours, theirs) for ours, theirs in zip(student.hidden, teacher.hidden, strict=True)]
        config = self.prior.config
        distances = [
            attention_distance(*ours, *theirs, pattern.value, config.row_len)
            for ours, theirs, pattern in zip(
                student.queries_keys, teacher.queries_keys, config.layer_patterns, strict=True
            )
            if ours and theirs
        ]
        return {
            "hidden": self.settings.hidden * torch.stack(errors).mean(),
            "attention": self.settings.attention * torch.stack(distances).mean(),
        }


class SoftTargets(WithTeacher):
    """Stage two: cross-entropy of the student's code distribution against the teacher's (Eq. 3)."""

    def losses(self, windows: Windows) -> dict[str, Tensor]:
        student, teacher = self.traces(windows, layers=False)
        return {"soft_cross_entropy": soft_cross_entropy(student.logits, teacher.logits, self.settings.temperature)}


def cross_entropy(logits: Tensor, codes: Tensor) -> Tensor:
    """Mean in nats per code of a window's codes by their logits [B, T, V], the last T of `codes`: a scalar."""
    return F.cross_entropy(logits.flatten(0, 1), codes[:, -logits.shape[1] :].flatten())


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean over positions of -sum_v p_v log q_v, p and q the softmaxes of logits [..., V] / temperature: a scalar.

    Times temperature squared, so that gradients keep their size (Hinton et al. 2015, section 2).
    """
    targets = (teacher / temperature).softmax(dim=-1)
    loss = F.cross_entropy((student / temperature).flatten(0, -2), targets.flatten(0, -2))
    return loss * temperature**2


def attention_distance(
    q: Tensor, k: Tensor, teacher_q: Tensor, teacher_k: Tensor, pattern: str, row_len: int
) -> Tensor:
    """kernels' `attention_distance`: Triton's on a GPU, the reference elsewhere."""
    if q.device.type != "cuda":
        return reference.attention_distance(q, k, teacher_q, teacher_k, pattern, row_len)
    from ..kernels import fused

    return fused.attention_distance(q, k, teacher_q, teacher_k, pattern, row_len)
