"""Which teacher layers a student layer stands for, and what a student starts from."""

import pytest
import torch
from fastjukebox.distill.forward import Windows
from fastjukebox.distill.growth import deepened
from fastjukebox.distill.objectives import Computing, Distillation, SoftTargets
from fastjukebox.distill.prior import PriorTraining, prior_optimizer
from fastjukebox.distill.student import imitated, layer_groups, new_student, share_embeddings, student_config
from fastjukebox.engine.config import PRESETS, ConditionerConfig, PriorConfig
from fastjukebox.engine.patterns import Pattern
from fastjukebox.engine.prior import Prior
from hypothesis import given
from hypothesis import strategies as st

CYCLE = (Pattern.ROW, Pattern.COLUMN, Pattern.PREVIOUS_ROW)


def patterns(depth: int) -> list[Pattern]:
    return [CYCLE[layer % 3] for layer in range(depth)]


def test_groups_of_the_paper():
    by_threes, by_fours = (layer_groups(patterns(72), patterns(depth)) for depth in (24, 18))
    assert by_threes[:4] == ((0, 3, 6), (1, 4, 7), (2, 5, 8), (9, 12, 15))
    assert by_fours[:4] == ((0, 3, 6, 9), (1, 4, 7, 10), (2, 5, 8, 11), (12, 15, 18, 21))
    assert {len(group) for group in by_threes} == {3} and {len(group) for group in by_fours} == {4}


def test_a_mapping_takes_one_layer_of_each_group():
    groups = ((0,), (1, 4), (2, 5, 8), (3, 6, 9, 12))
    assert imitated(groups, "last") == (0, 4, 8, 12) and imitated(groups, "first") == (0, 1, 2, 3)
    assert imitated(groups, "middle") == (0, 1, 5, 6)


@given(st.integers(3, 80), st.data())
def test_groups_cover_the_teacher_in_order(depth, data):
    student_depth = data.draw(st.integers(3, depth))
    teacher, student = patterns(depth), patterns(student_depth)
    groups = layer_groups(teacher, student)
    assert len(groups) == student_depth
    assert sorted(index for group in groups for index in group) == list(range(depth)), "every layer exactly once"
    for pattern in CYCLE:
        ours = [group for group, own in zip(groups, student) if own is pattern]
        theirs = [index for index in range(depth) if teacher[index] is pattern]
        assert [index for group in ours for index in group] == theirs, "same pattern, consecutive, in order"
        sizes = [len(group) for group in ours]
        assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("mapping", ["last", "middle", "first"])
@given(st.integers(1, 26), st.data())
def test_layers_are_imitated_in_order_or_not_at_all(mapping, cycles, data):
    depth = data.draw(st.integers(3, 3 * cycles))
    groups = layer_groups(patterns(3 * cycles), patterns(depth))
    try:
        chosen = imitated(groups, mapping)
    except ValueError:
        assert depth % 3, "three patterns of one length keep their order"
    else:
        assert list(chosen) == sorted(set(chosen)) and len(chosen) == depth


def test_layers_out_of_order_imitate_earlier_ones_of_their_group():
    assert imitated(layer_groups(patterns(72), patterns(20)), "last")[-5:] == (60, 61, 68, 69, 70)
    # Up to half of the teacher's layers there always is one.
    for depth in range(3, 37):
        groups = layer_groups(patterns(72), patterns(depth))
        chosen = imitated(groups, "last")
        assert list(chosen) == sorted(set(chosen))
        assert all(layer in group for layer, group in zip(chosen, groups, strict=True))
    with pytest.raises(ValueError, match=r"40 layers .* out of order.* multiple of 3"):
        imitated(layer_groups(patterns(72), patterns(40)), "last")
    for depth in (18, 24):
        step = 72 // depth
        groups = layer_groups(patterns(72), patterns(depth))
        ends = tuple(3 * step * (index // 3 + 1) - 3 + index % 3 for index in range(depth))
        assert imitated(groups, "last") == ends


@pytest.mark.parametrize("teacher, student", [(6, 7), (6, 2), (4, 6)])
def test_groups_that_cannot_be_are_refused(teacher, student):
    with pytest.raises(ValueError, match="cannot stand for a teacher"):
        layer_groups(patterns(teacher), patterns(student))


@pytest.mark.parametrize("copied", [False, True])
def test_student_starts_from_the_teachers_embeddings_and_conditioner(copied):
    torch.manual_seed(0)
    teacher = Prior(PriorConfig(0, 32, 12, 2, 32, 4, codebook_size=64, conditioner=ConditionerConfig(16, 2)))
    # Groups are (0, 3, 6, 9), (1, 4, 7, 10), (2, 5, 8, 11); one layer of each adds more than the others.
    strongest = (3, 10, 2)
    with torch.no_grad():
        for index, name in zip(strongest, ("proj", "down", "proj")):
            getattr(teacher.layers[index], name).weight.add_(1)
    student = new_student(teacher, 3, copied)
    shared = [name for name, _ in student.named_parameters() if not name.startswith("layers.")]
    assert any(name.startswith("conditioner.") for name in shared) and "token_embedding" in shared
    for name in shared:
        assert torch.equal(student.get_parameter(name), teacher.get_parameter(name)), name
    ours, theirs = ({parameter.data_ptr() for parameter in prior.parameters()} for prior in (student, teacher))
    assert not ours & theirs, "training the one would change the other"
    for index, copy in enumerate(strongest):
        same = torch.equal(student.layers[index].qkv.weight, teacher.layers[copy].qkv.weight)
        assert same is copied


@pytest.mark.parametrize(("shallow", "deep"), [(3, 12), (6, 24), (6, 18)])
def test_a_student_of_a_teacher_that_grew_is_what_it_grew_from(shallow, deep):
    torch.manual_seed(0)
    prior = Prior(PriorConfig(0, 32, shallow, 2, 32, 4, codebook_size=64))
    codes = torch.randint(64, (2, 32))
    student = new_student(deepened(prior, deep), shallow, copy_layers=True)
    torch.testing.assert_close(student(codes), prior(codes))


@pytest.mark.parametrize("matrix_learning_rate", [None, 0.02])
def test_shared_embeddings_are_left_as_they_are(matrix_learning_rate):
    config = PriorConfig(0, 32, 6, 2, 32, 4, codebook_size=64, conditioner=ConditionerConfig(16, 2, stages=1))
    torch.manual_seed(0)
    teacher = Prior(config)
    student = new_student(teacher, 3)
    share_embeddings(student)
    optimizer = prior_optimizer(student, PriorTraining(matrix_learning_rate=matrix_learning_rate))
    codes, upper = torch.randint(64, (2, 32)), torch.randint(64, (2, 16))
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    SoftTargets(student, teacher, Distillation(), Computing())(Windows(codes, upper)).backward()
    optimizer.step()
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, before[name]) is not name.startswith("layers."), name


@pytest.mark.parametrize("name", ["top-1b-lyrics", "top-5b-lyrics", "top-72", "top-5b"])
@given(st.integers(3, 72))
def test_a_student_has_its_share_of_every_pattern_in_the_teachers_order(name, depth):
    teacher = PRESETS[name]
    kinds = set(teacher.layer_patterns)
    if depth < len(kinds):
        with pytest.raises(ValueError, match=f"a student of {depth} layers cannot have all of row, column"):
            student_config(teacher, depth)
        return
    student = student_config(teacher, depth)
    for kind in kinds:
        share = depth * teacher.layer_patterns.count(kind) / teacher.depth
        count = student.layer_patterns.count(kind)
        # Rare ones have a layer that others lack.
        assert count >= 1 and (count == 1 or abs(count - share) < 2), (kind, count, share)
    assert student.depth == len(student.layer_patterns) == depth
    if len(kinds) == 3:
        assert student.pattern_cycle == teacher.pattern_cycle
    else:
        last = [group[-1] for group in layer_groups(teacher.layer_patterns, student.layer_patterns)]
        assert (
            last == sorted(last) == list(imitated(layer_groups(teacher.layer_patterns, student.layer_patterns), "last"))
        )
    # All of the teacher's layers are the teacher.
    whole = student_config(teacher, teacher.depth)
    assert whole.layer_patterns == teacher.layer_patterns
