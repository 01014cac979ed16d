"""The ends of a check of drafted codes against the reference, and the reference against words."""

from types import SimpleNamespace

import pytest
import torch
from decode_case import draw
from fastjukebox.kernels import fused, reference
from hypothesis import given
from hypothesis import strategies as st
from shapes import few_examples

WRITTEN = {"begin_check": ("x", "positions"), "end_check": ("codes", "x", "positions", "reached", "counts")}


def make(row_len, num_rows, lanes, reached, limit, drafted, found, width=33, size=19, stored=torch.float32, cond=True):
    """Arguments of both operations. drafted: codes from `reached` on; found: the right ones, a lane each."""
    context = row_len * num_rows
    codes, right = torch.arange(context) % size, torch.full((lanes, context), -1)
    codes[reached : reached + len(drafted)] = torch.tensor(drafted)[: max(0, context - reached)]
    first = min(reached, limit - 1)
    for lane, code in enumerate(found[:lanes]):
        if first + lane < context:
            right[lane, first + lane] = code
    return SimpleNamespace(
        codes=codes[None],
        found=right,
        reached=torch.tensor([reached]),
        limit=torch.tensor([limit]),
        counts=torch.tensor([[5, 7, 9]]),
        token_embedding=draw(size, width).to(stored),
        pos_embedding=draw(context, width).to(stored),
        frame_cond=draw(1, context, width).to(stored) if cond else None,
        row_len=row_len,
        lanes=lanes,
        width=width,
    )


def run(module, name, case, device):
    given = {
        key: value.to(device, copy=True) if isinstance(value, torch.Tensor) else value
        for key, value in vars(case).items()
        if key not in ("lanes", "width")
    }
    lanes = case.lanes if name == "begin_check" else 1
    lanes *= len(case.reached)
    given |= {"x": torch.full((lanes, case.width), float("nan"), device=device)}
    given |= {"positions": torch.full((lanes,), -1, device=device)}
    if name == "begin_check":
        del given["found"], given["counts"]
    getattr(module, name)(**given)
    return {key: given[key].cpu() for key in WRITTEN[name]}


def assert_same(case, device):
    """What both operations write."""
    written = {}
    for name in WRITTEN:
        written[name] = found = run(fused, name, case, device)
        for key, expected in run(reference, name, case, torch.device("cpu")).items():
            # Sums of the same FP32 numbers in the same order.
            assert torch.equal(found[key], expected), (name, key)
    return written["begin_check"], written["end_check"]


@pytest.mark.parametrize(
    ("drafted", "kept", "same"),
    [([1, 2, 3, 4], 4, 4), ([9, 2, 3, 4], 1, 0), ([1, 2, 9, 4], 3, 2), ([1, 2, 3, 9], 4, 3), ([9, 9, 9, 9], 1, 0)],
)
def test_codes_are_kept_up_to_the_first_wrong_one_which_is_corrected(device, drafted, kept, same):
    case = make(8, 4, 4, 10, 32, drafted, [1, 2, 3, 4])
    begun, ended = assert_same(case, device)
    assert begun["positions"].tolist() == [10, 11, 12, 13]
    # Position 9 holds a code as it was, from which position 10 is predicted.
    assert torch.equal(begun["x"][0], case.token_embedding[9] + case.pos_embedding[10] + case.frame_cond[0, 10])
    assert ended["codes"][0, 10 : 10 + kept].tolist() == [1, 2, 3, 4][:kept]
    assert ended["codes"][0, 10 + kept : 14].tolist() == drafted[kept:]
    assert torch.equal(ended["codes"][0, :10], case.codes[0, :10])
    assert ended["reached"].item() == ended["positions"].item() == 10 + kept
    assert ended["counts"].tolist() == [[5 + same, 8, 13]]
    after = case.token_embedding[kept] + case.pos_embedding[10 + kept] + case.frame_cond[0, 10 + kept]
    assert torch.equal(ended["x"][0], after)


def test_a_check_ends_with_its_row(device):
    begun, ended = assert_same(make(8, 4, 4, 14, 32, [1, 2, 9, 9], [1, 2]), device)
    assert begun["positions"].tolist() == [14, 15, 15, 15]
    assert torch.equal(begun["x"][1], begun["x"][3])
    assert ended["reached"].item() == ended["positions"].item() == 16
    assert ended["counts"].tolist() == [[7, 8, 11]]


def test_a_check_ends_with_the_limit(device):
    begun, ended = assert_same(make(8, 4, 4, 10, 12, [1, 9, 3], [1, 2, 4]), device)
    assert begun["positions"].tolist() == [10, 11, 11, 11]
    assert ended["codes"][0, 10:13].tolist() == [1, 2, 3]
    assert ended["reached"].item() == 12
    # The draft stays where a code is to be had.
    assert ended["positions"].item() == 11


@pytest.mark.parametrize("limit", [12, 16, 32])
@pytest.mark.parametrize("guessed", [3, 7])
def test_a_check_too_many_finds_the_last_code_again(device, limit, guessed):
    case = make(8, 4, 4, limit, limit, [], [7])
    # What the draft has guessed there meanwhile; it counts for nothing if it is right.
    case.codes[0, limit - 1] = guessed
    begun, ended = assert_same(case, device)
    assert begun["positions"].tolist() == [limit - 1] * 4
    assert ended["codes"][0, limit - 1].item() == 7
    assert torch.equal(ended["codes"][0, : limit - 1], case.codes[0, : limit - 1])
    assert (ended["reached"].item(), ended["positions"].item()) == (limit, limit - 1)
    assert ended["counts"].tolist() == [[5, 7, 9]]


def side_by_side(cases):
    """Several items' arguments as those of one call: what was one item's is an item's, the limit is all items'."""
    first = cases[0]
    joined = {name: torch.cat([vars(case)[name] for case in cases]) for name in ("codes", "reached", "counts")}
    joined["found"] = torch.stack([case.found for case in cases], dim=1).flatten(0, 1)
    if first.frame_cond is not None:
        joined["frame_cond"] = torch.cat([case.frame_cond for case in cases])
    return SimpleNamespace(**(vars(first) | joined))


@few_examples
@given(
    st.data(),
    st.integers(1, 20),
    st.integers(1, 9),
    st.sampled_from([torch.float32, torch.float16]),
    st.booleans(),
    st.sampled_from([1, 1, 2, 3]),
)
def test_any_shape(device, data, row_len, num_rows, stored, cond, items):
    if row_len * num_rows < 3:
        row_len = 3
    lanes = data.draw(st.sampled_from([1, 2, 3, 4, 8, 16, 17]))
    limit = data.draw(st.integers(2, row_len * num_rows))
    codes = st.lists(st.integers(0, 2), min_size=lanes, max_size=lanes)
    width = data.draw(st.integers(1, 70))
    given = data.draw(st.lists(st.tuples(st.integers(1, limit), codes, codes), min_size=items, max_size=items))
    cases = [make(row_len, num_rows, lanes, at, limit, *both, width, 19, stored, cond) for at, *both in given]
    for case in cases:
        case.token_embedding, case.pos_embedding = cases[0].token_embedding, cases[0].pos_embedding
    found = assert_same(side_by_side(cases), device)
    # Each item's are those of a call of its own.
    for item, case in enumerate(cases):
        for name, together in zip(WRITTEN, found):
            alone = run(reference, name, case, torch.device("cpu"))
            for key, value in alone.items():
                assert torch.equal(together[key][item::items], value), (name, key)


@pytest.mark.gpu
@pytest.mark.parametrize("lanes", [4, 16])
def test_the_models_sizes(device, lanes):
    drafted = [1] * (lanes - 2) + [2, 1]
    sizes = [1] * lanes, 1920, 2048, torch.float16
    assert_same(side_by_side([make(64, 128, lanes, at, 8192, drafted, *sizes) for at in (5000, 63, 8192)]), device)


def test_embeddings_that_are_not_contiguous_are_refused():
    case = make(8, 4, 4, 10, 12, [1], [1])
    case.token_embedding = case.token_embedding.t().contiguous().t()
    for name in WRITTEN:
        with pytest.raises(ValueError, match="embeddings must be contiguous"):
            run(fused, name, case, torch.device("cpu"))
