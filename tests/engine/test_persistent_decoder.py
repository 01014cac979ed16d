"""The kernel that stays on the GPU draws the codes that the eager decoder draws. Without a GPU it runs on the CPU, its
threads in an order that a seed decides (tests/kernels/cpu_gpu)."""

import dataclasses
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from fastjukebox.engine import Prior, PriorConfig
from fastjukebox.engine.decoder import EagerDecoder, LevelSampling, choose_backend
from fastjukebox.engine.graph_decoder import GraphDecoder
from fastjukebox.engine.patterns import Pattern
from fastjukebox.engine.persistent_decoder import PersistentDecoder, missing, shape_of
from fastjukebox.kernels import persistent as kernel
from fastjukebox.kernels import reference
from test_graph_decoder import (
    assert_same_but_for_ties,
    assert_serves_windows_of_every_kind,
    decode,
    make_task,
)
from test_labelled_priors import each_kind
from test_labelled_priors import make_prior as make_labelled_prior
from test_labelled_priors import make_task as make_labelled_task

sys.path.append(str(Path(__file__).parent.parent / "kernels"))

from cpu_gpu.program import COMPILER, CpuProgram

needs_nvrtc = pytest.mark.skipif(bool(kernel.missing()), reason=f"needs NVRTC: {kernel.missing()}")


def on_the_cpu(test):
    return pytest.mark.linux(pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")(test))


CONFIG = PriorConfig(level=1, width=64, depth=3, heads=2, context_len=12, num_rows=4, codebook_size=19)
# Three and two chunks of 256 inputs, the last of them not whole, for two warps; heads of two warps.
WIDE = PriorConfig(
    level=0, width=528, depth=3, heads=2, context_len=12, num_rows=6, codebook_size=300, attn_ratio=128 / 528
)


def make_prior(randomize, config=CONFIG, dtype=torch.float32):
    return randomize(Prior(config), scale=0.7).to(dtype)


def persistent(prior, batch, int8=False, **options):
    return PersistentDecoder(prior, batch, int8, program=partial(CpuProgram, **options))


def assert_as_in_plain_pytorch(decoder, make, *cuts, tolerance=1e-6):
    """The window that `make` makes has the codes and the last logits of the same steps in plain PyTorch."""
    expected = GraphDecoder(decoder.prior, decoder.batch, decoder.head.scale is not None, ops=reference)
    codes = decode(decoder, make(), *cuts)
    assert torch.equal(codes, decode(expected, make()))
    assert off(decoder, expected) <= tolerance
    return codes


def off(decoder, expected):
    """How far the last logits are from what another decoder expects."""
    # A word's lower half is a number.
    logits = (decoder.words["logits"].view(decoder.batch, -1) & 0xFFFFFFFF).int().view(torch.float32)
    return (logits - expected.logits).norm() / expected.logits.norm()


@on_the_cpu
@pytest.mark.parametrize("prompt_len", [0, 5])
@pytest.mark.parametrize("shared_bytes", [1 << 16, 1 << 15, 12 << 10])
def test_codes_equal_those_of_the_eager_decoder(randomize, prompt_len, shared_bytes):
    """With places for all matrices in shared memory, for some, and for none."""
    prior = make_prior(randomize)
    task = make_task(prior, prompt_len=prompt_len)
    codes = decode(persistent(prior, 1, shared_bytes=shared_bytes), task, 7, 8)
    assert_same_but_for_ties(prior, task, codes, 1e-4)
    assert torch.equal(codes, decode(EagerDecoder(prior, 1), make_task(prior, prompt_len=prompt_len)))
    assert len(set(codes[0].tolist())) > 3


@on_the_cpu
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_stored_numbers(randomize, dtype, int8):
    prior = make_prior(randomize, WIDE, dtype)
    decoder = persistent(prior, 2, int8, shared_bytes=(1 << 18) + (1 << 16))
    # A key or value may be rounded to another neighbour.
    tolerance = 1e-6 if dtype == torch.float32 else 1e-4
    assert_as_in_plain_pytorch(decoder, lambda: make_task(prior, 2, 3), 8, tolerance=tolerance)


@on_the_cpu
@needs_nvrtc
@pytest.mark.parametrize(
    ("architecture", "dtype", "int8"),
    [
        (75, torch.float16, False),
        (80, torch.bfloat16, False),
        (90, torch.float16, False),
        (90, torch.float16, True),
        (90, torch.float32, False),
        (100, torch.bfloat16, True),
    ],
)
def test_what_it_is_compiled_to(randomize, architecture, dtype, int8):
    """The PTX itself, instruction by instruction."""
    prior = make_prior(randomize, WIDE, dtype)
    decoder = persistent(prior, 2, int8, shared_bytes=(1 << 18) + (1 << 16), architecture=architecture)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-4
    sampling = LevelSampling(0.9, 7, 0.8)
    assert_as_in_plain_pytorch(decoder, lambda: make_task(prior, 2, 3, sampling=sampling), 8, tolerance=tolerance)


@on_the_cpu
@needs_nvrtc
def test_blocks_and_places_as_on_a_gpu(randomize):
    """Blocks of as many threads as are launched, at the width of the published upsamplers; places for some matrices."""
    config = PriorConfig(level=0, width=1920, depth=3, heads=1, context_len=512, num_rows=8)
    prior = make_prior(randomize, config, torch.float16)
    decoder = persistent(prior, 1, blocks=12, threads=kernel.THREADS, shared_bytes=227 << 10, architecture=90)
    expected = GraphDecoder(prior, 1, ops=reference)
    for each in (decoder, expected):
        each.prefill(make_task(prior, 1, 70))
        each.run(70, 72)
    assert torch.equal(decoder.task.codes, expected.task.codes)
    assert off(decoder, expected) <= 1e-4


@on_the_cpu
def test_the_same_bits_in_every_order_batch_and_grid(randomize):
    prior = make_prior(randomize)

    def ends_with(task, **options):
        """Codes, and what a position after the first ones takes in and keeps, to the bit."""
        decoder = persistent(prior, len(task.codes), **options)
        decoder.prefill(task)
        decoder.run(2, 10)
        kept = [layer.kv[:, 0].clone() for layer in decoder.cache.layers]
        return [task.codes[0], decoder.x[0], *kept]

    expected = ends_with(make_task(prior, 1, 2))
    for options in (
        *({"seed": 100 * seed} for seed in range(1, 6)),
        {"blocks": 1},
        {"blocks": 5, "shared_bytes": 12 << 10},
        {"blocks": 16},
    ):
        found = ends_with(make_task(prior, 1, 2), **options)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)), options
    together = ends_with(make_task(prior, 3, 2), seed=7)
    assert all(torch.equal(a, b) for a, b in zip(expected, together, strict=True))


@on_the_cpu
@pytest.mark.parametrize(
    "sampling", [LevelSampling(0.9, 5), LevelSampling(1.3, 0, 0.6), LevelSampling(0.8, 7, 0.9), LevelSampling(1, 1)]
)
def test_filters(randomize, sampling):
    prior = make_prior(randomize)
    codes = decode(persistent(prior, 2), make_task(prior, 2, sampling=sampling))
    assert torch.equal(codes, decode(EagerDecoder(prior, 2), make_task(prior, 2, sampling=sampling)))


@on_the_cpu
def test_a_decoder_serves_windows_of_every_kind(randomize):
    prior = make_prior(randomize)
    assert_serves_windows_of_every_kind(persistent(prior, 2))


@on_the_cpu
@pytest.mark.parametrize("cycle", [(Pattern.DENSE, Pattern.COLUMN), (Pattern.PREVIOUS_ROW, Pattern.ROW, Pattern.ROW)])
def test_any_patterns_and_residual_scales(randomize, cycle):
    # The dense layer has six parts, each of more keys than a block has warps.
    config = dataclasses.replace(CONFIG, pattern_cycle=cycle, scale_residual=True, context_len=96)
    prior = make_prior(randomize, config)
    assert_as_in_plain_pytorch(persistent(prior, 2), lambda: make_task(prior, 2, 90, sampling=LevelSampling(2.0)))


@on_the_cpu
@each_kind
def test_labels_and_lyrics(randomize, kind):
    prior = make_labelled_prior(randomize, kind, torch.float32, width=64, heads=2).requires_grad_(False)
    prompt_len = prior.config.window_len - 5
    assert_as_in_plain_pytorch(persistent(prior, 2), lambda: make_labelled_task(prior, prompt_len=prompt_len))


@on_the_cpu
def test_more_words_than_tags(randomize):
    """Tags begin anew after 2^32 of them."""
    prior = make_prior(randomize)
    decoder = persistent(prior, 1)
    decoder.tag = 2**32 - 7
    task = make_task(prior)
    assert torch.equal(decode(decoder, task, 3), decode(EagerDecoder(prior, 1), make_task(prior)))
    assert decoder.tag == 12 * (CONFIG.depth + 1) - 7


def test_what_it_is_not_made_for_is_refused():
    with pytest.raises(ValueError, match="4 items at a time at most, not 5: choose triton"):
        shape_of(Prior(CONFIG), 5)
    with pytest.raises(ValueError, match="multiples of 16 and an even head dim, not 72, 18, 72 and 9"):
        shape_of(Prior(dataclasses.replace(CONFIG, width=72)), 1)
    with pytest.raises(ValueError, match=r"not torch\.float64"):
        shape_of(Prior(CONFIG).double(), 1)
    assert missing(torch.device("cpu"), torch.float16) == "it needs an NVIDIA GPU"
    with pytest.raises(ValueError, match="persistent decoder cannot run on cpu: it needs an NVIDIA GPU"):
        choose_backend("persistent", torch.device("cpu"), torch.float16)


@pytest.mark.gpu
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_window_of_the_models_width(randomize, dtype, int8):
    """All patterns, all rows: nearly all codes are the graph decoder's; the same bits in every batch and run."""
    config = PriorConfig(level=0, width=1920, depth=3, heads=1, context_len=512, num_rows=8)
    prior = make_prior(randomize, config, dtype).to("cuda")
    decoder = PersistentDecoder(prior, 3, int8)
    codes = decode(decoder, make_task(prior, 3, 70), 100, 301)
    assert torch.equal(decode(decoder, make_task(prior, 3, 70)), codes)
    for item in range(3):
        alone = decode(PersistentDecoder(prior, 1, int8), make_task(prior, 1, 70, first_item=item))
        assert torch.equal(alone[0], codes[item])
    if not int8:
        tolerance = {torch.float32: 1e-2, torch.float16: 0.25, torch.bfloat16: 2.0}[dtype]
        ties = assert_same_but_for_ties(prior, make_task(prior, 3, 70), codes, tolerance)
        assert ties <= 0.05 * codes.numel()
