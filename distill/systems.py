"""The paper's seven systems (Fast Jukebox, section 4 and Table 1) as recipes, the same at every level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# "next_code": cross-entropy on the codes. "layers": stage one of distillation. "prediction": stage two.
Objective = Literal["next_code", "layers", "prediction"]


@dataclass(frozen=True)
class System:
    """One prior per level of `layers` layers.

    teacher: the system that it imitates. start: the system whose weights it goes on with.
    """

    name: str
    layers: int
    objective: Objective = "next_code"
    teacher: str | None = None
    start: str | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """The systems that must be trained before, at the same level."""
        return tuple(name for name in (self.teacher, self.start) if name)


def _students(layers: int) -> tuple[System, ...]:
    first = f"student-{layers}-layers"
    return (
        System(first, layers, "layers", TEACHER),
        System(f"student-{layers}", layers, "prediction", TEACHER, first),
    )


TEACHER = "teacher-72"
# Whose priors a system takes for levels where it has none of its own.
UPSAMPLERS = "student-18"
# What is served, and trained at every level; the others are ablations.
SERVED = (TEACHER, "student-24", UPSAMPLERS)
# A student without the prediction stage is where the student with both stages starts from: it is trained once.
SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        System(TEACHER, 72),
        System("plain-24", 24),
        System("plain-18", 18),
        *_students(24),
        *_students(18),
    )
}

# Beside the paper's, trained if asked for: students that draft codes for others (engine/speculative_decoder.py).
DRAFTS: dict[str, System] = {system.name: system for system in _students(3)}
ALL = SYSTEMS | DRAFTS


def system(name: str) -> System:
    """Raises ValueError on another name."""
    if name not in ALL:
        raise ValueError(f"no system {name!r}; there are {', '.join(ALL)}")
    return ALL[name]
