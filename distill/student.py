"""Students: which teacher layers a student layer stands for, and what a student starts from
(Fast Jukebox, Appl. Sci. 2023, 13, 5630, section 4).

Teacher and student repeat the same patterns over their layers. The teacher layers of one pattern, in order, are cut
into as many consecutive groups as the student has layers of that pattern; a student layer stands for its group, and is
trained towards what one layer of it gives, by default the last. 72 layers become 24 by threes and 18 by fours. Where
the division has a remainder, the first groups are longer by one: the lower layers are the ones that a smaller network
merges best.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Literal, cast

import torch

from ..engine.config import PriorConfig
from ..engine.patterns import Pattern
from ..engine.prior import Prior
from ..engine.transformer import TransformerLayer

# Which layer of its group a student layer imitates.
Mapping = Literal["last", "middle", "first"]


def layer_groups(teacher: Sequence[Pattern], student: Sequence[Pattern]) -> tuple[tuple[int, ...], ...]:
    """For each student layer the teacher layers that it stands for, by the patterns of both networks' layers.

    Raises:
        ValueError: a pattern is missing from one of them, or the student has more layers of it.
    """
    groups: dict[int, tuple[int, ...]] = {}
    for pattern in sorted({*teacher, *student}):
        theirs = [index for index, other in enumerate(teacher) if other is pattern]
        ours = [index for index, other in enumerate(student) if other is pattern]
        if not ours or len(ours) > len(theirs):
            raise ValueError(
                f"a student with {len(ours)} layers of pattern {pattern.value} cannot stand for a teacher with "
                f"{len(theirs)}: it needs one at least, and no more than the teacher has"
            )
        size, longer = divmod(len(theirs), len(ours))
        first = 0
        for number, index in enumerate(ours):
            stop = first + size + (number < longer)
            groups[index] = tuple(theirs[first:stop])
            first = stop
    return tuple(groups[index] for index in range(len(student)))


def imitated(groups: Sequence[tuple[int, ...]], mapping: Mapping) -> tuple[int, ...]:
    """The layer of each group that is imitated. Of an even number the middle one is the lower of the two.

    Where a depth gives one pattern fewer layers than the next, so that its groups are longer, some layers would be
    imitated out of the teacher's order, such as 71, 69, 70 at the end of 20 of 72. Such a layer imitates the latest of
    its group that comes before what the next one imitates: 68, 69, 70.

    Raises:
        ValueError: no layer of a group does.
    """
    chosen = [
        {"last": group[-1], "middle": group[(len(group) - 1) // 2], "first": group[0]}[mapping] for group in groups
    ]
    for index in reversed(range(len(groups) - 1)):
        if chosen[index] >= chosen[index + 1]:
            earlier = [layer for layer in groups[index] if layer < chosen[index + 1]]
            if not earlier:
                raise ValueError(
                    f"a student of {len(groups)} layers would imitate those of its teacher out of order: take a depth "
                    "with equally many layers of each pattern, a multiple of 3"
                )
            chosen[index] = earlier[-1]
    return tuple(chosen)


def student_config(teacher: PriorConfig, depth: int) -> PriorConfig:
    """The teacher's sizes with `depth` layers. Where it repeats one layer of each pattern, so does the student. Where
    some patterns are rare, those that attend to lyrics, the student has as large a share of each, one layer at least,
    in the order of those that they stand for.

    Raises:
        ValueError: there are more patterns than layers.
    """
    cycle = teacher.pattern_cycle
    if len(set(cycle)) == len(cycle):
        return dataclasses.replace(teacher, depth=depth)
    patterns = teacher.layer_patterns
    kinds = sorted(set(patterns), key=patterns.index)
    if depth < len(kinds):
        raise ValueError(f"a student of {depth} layers cannot have all of {', '.join(kind.value for kind in kinds)}")
    shares = {kind: depth * patterns.count(kind) / len(patterns) for kind in kinds}
    counts = {kind: max(1, int(share)) for kind, share in shares.items()}
    # Rounded so that they add up.
    while (missing := depth - sum(counts.values())) != 0:
        step = 1 if missing > 0 else -1
        changing = [kind for kind in kinds if step > 0 or counts[kind] > 1]
        counts[max(changing, key=lambda kind: step * (shares[kind] - counts[kind]))] += step
    unordered = [kind for kind in kinds for _ in range(counts[kind])]
    last = [group[-1] for group in layer_groups(patterns, unordered)]
    ordered = sorted(range(depth), key=lambda index: last[index])
    return dataclasses.replace(teacher, depth=depth, pattern_cycle=tuple(unordered[index] for index in ordered))


def _strength(prior: Prior, index: int) -> float:
    layer = cast("TransformerLayer", prior.layers[index])
    return float(layer.proj.weight.square().sum() + layer.down.weight.square().sum())


@torch.no_grad()
def new_student(teacher: Prior, depth: int, copy_layers: bool = False) -> Prior:
    """A student with the teacher's embeddings, start token, labels, head and conditioner; they have one width.

    Its layers are new, unless `copy_layers`: then each is a copy of the layer of its group that adds most to the
    residual stream, by the norm of its output projections. In a teacher that grew, that is one it grew around.

    Raises:
        ValueError: the teacher's layers cannot be grouped into so few or so many.
    """
    student = Prior(student_config(teacher.config, depth))
    groups = layer_groups(teacher.config.layer_patterns, student.config.layer_patterns)
    for name, tensor in student.named_parameters():
        if not name.startswith("layers."):
            tensor.copy_(teacher.get_parameter(name))
    if copy_layers:
        for index, group in enumerate(groups):
            student.layers[index] = copy.deepcopy(teacher.layers[max(group, key=lambda i: _strength(teacher, i))])
    return student.to(teacher.device)


def hear_as(student: Prior, teacher: Prior) -> None:
    """Give `student` for good what makes the teacher's vectors of labels and lyrics: windows come with those."""
    for ours, theirs in ((student.labels, teacher.labels), (student.lyric_encoder, teacher.lyric_encoder)):
        if ours is not None and theirs is not None:
            ours.load_state_dict(theirs.state_dict())
            ours.requires_grad_(False)


def share_embeddings(student: Prior) -> None:
    """Leave all but the student's layers out of training: it keeps the teacher's embeddings, start token, head and
    conditioner, so that one copy of them serves the teacher and all its students."""
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name.startswith("layers."))
