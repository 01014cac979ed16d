import pytest
import shapes
import torch
import triton
import triton.language as tl
from decode_case import draw
from fastjukebox.kernels import fused, philox, reference
from fastjukebox.kernels.sample_step import random_bits
from hypothesis import given
from hypothesis import strategies as st

SEED, LEVEL, OFFSET = 0xFEDCBA9876543210, 2, 2**31 + 12345


@triton.jit
def _words(out_ptr, noise_key_ptr, items_ptr, positions_ptr, BLOCK: tl.constexpr):
    lane = tl.program_id(0)
    bits = random_bits(noise_key_ptr, tl.load(items_ptr + lane), tl.load(positions_ptr + lane), BLOCK)
    tl.store(out_ptr + lane * BLOCK + tl.arange(0, BLOCK), bits.to(tl.int64))


def noise_key():
    return torch.tensor([SEED & 0xFFFFFFFF, SEED >> 32, LEVEL, OFFSET])


def test_random_bits_are_philox(device):
    items, positions = torch.tensor([0, 2**31, 2**32 - 1]), torch.tensor([0, 1, 5000])
    out = torch.full((3, 64), -1, device=device)
    _words[(3,)](out, noise_key().to(device), items.to(device), positions.to(device), BLOCK=64)
    for row in range(3):
        one = slice(row, row + 1)
        expected = philox.random_bits(SEED, items[one], LEVEL, positions[one] + OFFSET, 64)[0, 0]
        assert torch.equal(out[row].cpu(), expected)


def make(logits, positions=None, temperature=0.99, top_k=0, top_p=1.0, context=9, width=33, conditioned=True):
    batch, size = logits.shape
    return {
        "codes": torch.full((batch, context), -1),
        "x": torch.full((batch, width), float("nan")),
        "positions": torch.arange(batch) if positions is None else torch.tensor(positions),
        "logits": logits,
        "items": torch.arange(batch) + 5,
        "noise_key": noise_key(),
        "filters": torch.tensor([temperature, float(top_k), top_p]),
        "token_embedding": draw(size, width),
        "pos_embedding": draw(context, width),
        "frame_cond": draw(batch, context, width) if conditioned else None,
    }


def sample(module, args, device):
    given = {
        key: value.to(device, copy=True) if isinstance(value, torch.Tensor) else value for key, value in args.items()
    }
    module.sample_step(**given)
    return {key: given[key].cpu() for key in ("codes", "x", "positions")}


def assert_same(args, device):
    found, expected = sample(fused, args, device), sample(reference, args, torch.device("cpu"))
    for key in found:
        # Sums of the same FP32 numbers in the same order.
        assert torch.equal(found[key].nan_to_num(-7.0), expected[key].nan_to_num(-7.0)), key
    return found


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(0.99, 0, 1.0), (0.5, 5, 1.0), (1.3, 0, 0.7), (1.0, 6, 0.6), (1.0, 1, 1.0), (1.0, 99, 0.01)],
)
def test_codes_and_next_inputs_equal_the_reference(device, temperature, top_k, top_p):
    args = make(draw(3, 37, std=3.0), None, temperature, top_k, top_p)
    found = assert_same(args, device)
    assert (found["positions"] == args["positions"] + 1).all()


def test_after_the_last_position_nothing_is_embedded(device):
    found = assert_same(make(draw(2, 37), positions=(8, 3)), device)
    assert found["x"][0].isnan().all()
    assert found["x"][1].isfinite().all()


@pytest.mark.parametrize("conditioned", [True, False])
def test_at_the_end_of_a_row_a_draft_does_the_last_position_again(device, conditioned):
    args = make(draw(5, 37), positions=(1, 2, 5, 7, 8), conditioned=conditioned) | {"row_len": 3}
    # Of codes before it, one may be a character of lyrics.
    args["token_embedding"] = draw(45, 33)
    args["codes"] = torch.arange(45).reshape(5, 9)
    found = assert_same(args, device)
    assert found["positions"].tolist() == [2, 2, 5, 8, 8]
    x = args["token_embedding"][args["codes"][2, 4]] + args["pos_embedding"][5]
    assert torch.equal(found["x"][2], x + args["frame_cond"][2, 5] if conditioned else x)


def test_without_a_condition(device):
    assert_same(make(draw(2, 37), conditioned=False), device)


@pytest.mark.parametrize(("top_k", "top_p"), [(2, 1.0), (0, 0.3)])
def test_codes_that_tie_with_the_last_one_kept_are_kept(device, top_k, top_p):
    # 4 equal codes, of which 2 are asked for; the others are far below. A negative zero ties with a positive one.
    logits = torch.full((13, 16), -20.0)
    logits[:, ::4] = torch.tensor([0.0, -0.0, 0.0, -0.0])
    args = make(logits, None, 1.0, top_k, top_p, context=13, width=2)
    found = assert_same(args, device)
    drawn = found["codes"][torch.arange(13), args["positions"]]
    assert sorted(set(drawn.tolist())) == [0, 4, 8, 12]


@pytest.mark.parametrize(("top_k", "top_p"), [(3, 1.0), (0, 0.3), (3, 0.6)])
def test_no_code_beyond_the_last_one_kept_is_drawn(device, top_k, top_p):
    # Almost equally likely: of the 8 codes 3, 3 and 2 are kept, and the next one would soon be drawn.
    logits = (torch.arange(8) * -0.01).expand(24, -1).contiguous()
    args = make(logits, None, 1.0, top_k, top_p, context=24, width=2)
    found = assert_same(args, device)
    drawn = found["codes"][torch.arange(24), args["positions"]]
    assert sorted(set(drawn.tolist())) == ([0, 1] if top_k and top_p < 1.0 else [0, 1, 2])


@pytest.mark.parametrize(
    ("item", "code", "logit", "drawn"),
    # Items whose code has the highest and the lowest noise that there is: 16.6 and -2.8.
    [(281399, 9, -30.0, False), (281399, 9, -6.0, True), (56864, 22, 20.0, True)],
)
def test_noise_is_finite_at_the_extreme_bits(device, item, code, logit, drawn):
    bits = philox.random_bits(SEED, torch.tensor([item]), LEVEL, torch.tensor([OFFSET]), 64)[0, 0, code] >> 9
    assert bits in (0, 2**23 - 1)
    args = make(torch.zeros(1, 64), None, 1.0)
    args["items"][0], args["logits"][0, code] = item, logit
    assert (assert_same(args, device)["codes"][0, 0] == code) == drawn


def test_top_p_that_is_met_but_not_exceeded_takes_one_more(device):
    # Probabilities 1/2, 1/4, 1/4, exactly.
    logits = torch.tensor([2.0, 1.0, 1.0]).log().expand(13, -1).contiguous()
    found = assert_same(make(logits, None, 1.0, 0, 0.5, context=13, width=2), device)
    assert set(found["codes"].amax(dim=1).tolist()) == {0, 1, 2}


def test_logits_that_are_not_numbers_give_a_code_that_exists(device):
    logits = torch.stack([torch.full((37,), value) for value in (float("nan"), float("-inf"))])
    for top_k, top_p in ((0, 1.0), (5, 0.5)):
        found = sample(fused, make(logits, None, 1.0, top_k, top_p), device)
        codes = found["codes"].amax(dim=1)
        assert (codes >= 0).all() and (codes < 37).all()
        assert found["x"].isfinite().all()


@shapes.few_examples
@given(
    shapes.windows(st.integers(1, 8)),
    shapes.widths,
    shapes.widths,
    st.floats(0.1, 2.0),
    st.one_of(st.just(0), st.integers(1, 160)),
    st.one_of(st.just(1.0), st.floats(0.01, 0.99)),
    st.booleans(),
    shapes.shared,
    st.sampled_from([torch.float32, torch.float16]),
)
def test_any_shape(device, window, size, width, temperature, top_k, top_p, conditioned, shared, stored):
    logits = draw(len(window.positions), size, std=3.0)
    args = make(logits, window.positions, temperature, top_k, top_p, window.context_len, width, conditioned)
    if conditioned:
        args["frame_cond"] = args["frame_cond"][: shapes.lanes(len(logits), shared)]
    for name in ("token_embedding", "pos_embedding", "frame_cond"):
        args[name] = None if args[name] is None else args[name].to(stored)
    assert_same(args, device)


@pytest.mark.gpu
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (50, 1.0), (0, 0.9), (200, 0.9)])
def test_the_models_sizes(device, top_k, top_p):
    args = make(draw(64, 2048, std=3.0), range(64), 0.99, top_k, top_p, context=8192, width=1920)
    assert_same(args, device)
