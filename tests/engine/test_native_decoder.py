"""The native decoder against the eager one, which is plain PyTorch: the same codes from the same seed."""

import dataclasses
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from fastjukebox.engine.config import ConditionerConfig, LabelConfig, LyricConfig, PriorConfig
from fastjukebox.engine.decoder import BACKENDS, EagerDecoder, LevelSampling, WindowTask, choose_backend
from fastjukebox.engine.kv_cache import KVCache
from fastjukebox.engine.native_decoder import NativeDecoder
from fastjukebox.engine.patterns import Pattern
from fastjukebox.kernels import native, native_library, philox, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import decode, make_prior, make_task, plain_prior, with_team

pytestmark = pytest.mark.skipif(
    native_library.missing() is not None, reason=f"native decoder: {native_library.missing()}"
)


def ties(prior, task, ours, theirs) -> list[float]:
    """For each item whose codes differ, how far apart the two candidates were where they first do."""
    gaps = []
    for item in (ours != theirs).any(dim=1).nonzero().flatten().tolist():
        pos = int((ours[item] != theirs[item]).nonzero()[0])
        cond = None if task.frame_cond is None else task.frame_cond[item : item + 1]
        logits = prior(theirs[item : item + 1], cond)[0, pos] / task.sampling.temperature
        noise = philox.gumbel_noise(
            task.seed, task.items[item : item + 1], task.level, torch.tensor([pos + task.offset]), logits.numel()
        )
        scores = logits + noise.flatten()
        gaps.append(float((scores[ours[item, pos]] - scores[theirs[item, pos]]).abs()))
    return gaps


CASES = {
    "as it is": ({}, {}),
    "batch, prompt, condition": ({}, {"batch": 3, "prompt_len": 30, "cond": True}),
    "nine items": ({}, {"batch": 9, "cond": True}),
    "top-k": ({}, {"batch": 2, "sampling": LevelSampling(0.9, top_k=5)}),
    "top-p": ({}, {"batch": 2, "sampling": LevelSampling(1.2, top_p=0.7)}),
    "top-k and top-p": ({}, {"sampling": LevelSampling(0.8, top_k=20, top_p=0.9)}),
    "greedy": ({}, {"batch": 2, "sampling": LevelSampling(top_k=1)}),
    "residual scale": ({"scale_residual": True}, {"batch": 2}),
    "one head of an odd dim": ({"width": 60, "heads": 1}, {"cond": True}),
    "dense": ({"pattern_cycle": (Pattern.DENSE, Pattern.COLUMN)}, {"prompt_len": 11}),
    "long rows": ({"num_rows": 2}, {"prompt_len": 1}),
    "64-bit seed, far into the song": ({}, {"seed": 2**63 + 12345, "offset": 10**6, "first_item": 2**31 - 1}),
}


@pytest.mark.parametrize("name", CASES)
def test_codes_equal_those_of_the_eager_decoder(name):
    sizes, options = CASES[name]
    prior = make_prior(**sizes)
    first = options.get("first_item", 0)
    if first:
        # Only the item number is large: no prompts or conditions are made for all items before it.
        options = {**options, "first_item": 0}
    results = []
    for kind in (EagerDecoder, NativeDecoder):
        task = make_task(prior, **options)
        task.items.add_(first)
        results.append((task, decode(kind(prior, len(task.codes)), task)))
    (task, eager), (_, ours) = results
    assert (ours >= 0).all()
    assert all(gap < 1e-4 for gap in ties(prior, task, ours, eager))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 20),
    width=st.integers(1, 50),
    depth=st.integers(1, 5),
    num_rows=st.integers(1, 6),
    row_len=st.integers(1, 7),
    codebook_size=st.integers(1, 70),
    batch=st.integers(1, 5),
    top_k=st.sampled_from([0, 0, 1, 7]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    data=st.data(),
)
def test_codes_equal_those_of_the_eager_decoder_at_random_sizes(
    heads, head_dim, width, depth, num_rows, row_len, codebook_size, batch, top_k, top_p, data
):
    # A width that gives exactly heads * head_dim attention channels.
    prior = make_prior(
        width=width,
        attn_ratio=(heads * head_dim + 0.5) / width,
        heads=heads,
        depth=depth,
        context_len=num_rows * row_len,
        num_rows=num_rows,
        codebook_size=codebook_size,
    )
    prompt_len = data.draw(st.integers(0, num_rows * row_len - 1))
    sampling = LevelSampling(1.0, top_k, top_p)
    tasks = [make_task(prior, batch, prompt_len, cond=True, sampling=sampling) for _ in range(2)]
    eager, ours = (decode(kind(prior, batch), task) for kind, task in zip((EagerDecoder, NativeDecoder), tasks))
    assert all(gap < 1e-3 for gap in ties(prior, tasks[0], ours, eager))


@pytest.mark.parametrize("alone", [0, 1 << 20])
@pytest.mark.parametrize(
    ("heads", "sizes"),
    [
        (1, {}),
        (2, {}),
        (4, {}),
        # An MLP that is not divided as heads are.
        (2, {"mlp_ratio": 0.7}),
        # So much attention that threads divide it, though they divide columns.
        (3, {"attn_ratio": 1.5, "pattern_cycle": (Pattern.DENSE, Pattern.COLUMN)}),
    ],
)
def test_an_items_codes_depend_neither_on_the_batch_nor_on_the_threads(heads, sizes, alone):
    prior = make_prior(width=128, heads=heads, **sizes)
    whole = decode(NativeDecoder(prior, 5), make_task(prior, 5, 20, cond=True))
    with native_library.items_alone(alone):
        for first, batch, threads in ((0, 2, 1), (2, 3, 2), (0, 5, 2), (4, 1, 3), (1, 4, 4)):
            decoder = with_team(NativeDecoder(prior, batch), threads)
            part = decode(decoder, make_task(prior, batch, 20, cond=True, first_item=first))
            assert torch.equal(part, whole[first : first + batch])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_of_scores_that_tie_the_first_is_taken(threads):
    """Up here scores are multiples of 8."""
    prior = plain_prior(torch.full((77,), 1e8))
    task = make_task(prior, 9)
    with native_library.items_alone(0):
        found = decode(with_team(NativeDecoder(prior, 9), threads), task, 1)[:, 0]
    noise = philox.gumbel_noise(task.seed, task.items, task.level, torch.tensor([0]), 77)[:, 0]
    assert torch.equal(found, (1e8 + noise).argmax(dim=1))


def test_a_code_with_just_top_p_before_it_is_kept():
    """Weights of 1, 1/2, 1/2 and nothing, all exact."""
    logits = torch.full((20,), -1e4)
    logits[10:13] = torch.tensor([0.5, 1.0, 0.5]).log()
    prior = plain_prior(logits)
    for top_p, kept in ((0.4999, {11}), (0.5, {10, 11, 12})):
        found = set[int]()
        for seed in range(9):
            task = make_task(prior, 9, sampling=LevelSampling(1.0, 0, top_p), seed=seed)
            found |= set(decode(NativeDecoder(prior, 9), task, 1)[:, 0].tolist())
        assert found == kept


def test_a_run_in_pieces_equals_one_run():
    prior = make_prior()
    whole = decode(NativeDecoder(prior, 1), make_task(prior, prompt_len=3))
    task, decoder = make_task(prior, prompt_len=3), NativeDecoder(prior, 1)
    decoder.prefill(task)
    for start, stop in ((3, 4), (4, 40), (40, 41), (41, 96)):
        decoder.run(start, stop)
    assert torch.equal(task.codes, whole)


def test_a_second_window_sees_nothing_of_the_first():
    prior = make_prior()
    decoder = NativeDecoder(prior, 1)
    decode(decoder, make_task(prior, seed=1))
    assert torch.equal(
        decode(decoder, make_task(prior, prompt_len=5)), decode(NativeDecoder(prior, 1), make_task(prior, prompt_len=5))
    )


def test_start_cond_takes_the_place_of_the_start_token():
    prior = make_prior()
    task = make_task(prior, 2)
    start_cond = torch.randn(2, 1, prior.config.width)
    tasks = [WindowTask(**{**vars(task), "codes": task.codes.clone(), "start_cond": start_cond}) for _ in range(2)]
    eager, ours = (decode(kind(prior, 2), one) for kind, one in zip((EagerDecoder, NativeDecoder), tasks))
    assert torch.equal(eager, ours)
    assert not torch.equal(ours, decode(NativeDecoder(prior, 2), task))


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        # What heads or their parts of the MLP hold are no whole pairs.
        {"attn_ratio": 10 / 64},
        {"mlp_ratio": 50 / 64},
        {"width": 61, "attn_ratio": 33 / 61, "heads": 3, "mlp_ratio": 47 / 61},
    ],
)
def test_int8_decodes_as_eager_does_with_the_rounded_weights(sizes):
    prior, rounded = (make_prior(**({"width": 64, "depth": 3} | sizes)) for _ in range(2))
    for layer in rounded.layers:
        for name in ("qkv", "proj", "up", "down"):
            weight = layer.get_submodule(name).weight
            stored, scale = native.quantize_int8(weight)
            weight.copy_(stored * scale)
    task, other = make_task(prior, 2), make_task(rounded, 2)
    ours = decode(NativeDecoder(prior, 2, int8=True), task)
    # The head is rounded too; the embedding that eager would tie it to is not. So only logits can be compared.
    weights, scale = native.quantize_int8(rounded.token_embedding.T)
    cache = KVCache(rounded.config, 2, rounded.device, rounded.dtype)
    previous = None
    for pos in range(other.codes.shape[1]):
        x = rounded.start_token.expand(2, -1) if previous is None else rounded.token_embedding[previous]
        x = x + rounded.pos_embedding[pos]
        for layer, layer_cache in zip(rounded.layers, cache.layers):
            x = layer.decode(x, layer_cache, pos)
        logits = x @ (weights * scale)
        noise = philox.gumbel_noise(task.seed, task.items, task.level, torch.tensor([pos]), logits.shape[1])[:, 0]
        expected = reference.sample_logits(logits, noise, task.sampling.temperature)
        assert torch.equal(ours[:, pos], expected)
        previous = ours[:, pos]


@pytest.mark.parametrize("width", [128, 1040, 4096])
def test_int8_sums_stay_within_32_bits(width):
    """The largest inputs and weights, all of one sign."""
    prior = make_prior(width=width, depth=1, heads=1)
    for parameter in prior.layers.parameters():
        parameter.zero_()
    size = prior.config.codebook_size
    prior.token_embedding.copy_(torch.linspace(0.5, 0.99, size)[:, None].expand(-1, width))
    # Just below a power of two.
    prior.pos_embedding.fill_(31.0)
    task = make_task(prior)
    assert (decode(NativeDecoder(prior, 1, int8=True), task) == size - 1).all()


def test_int8_takes_the_smallest_inputs_for_zero():
    """Below those whose steps are normal numbers."""
    prior = plain_prior(torch.ones(77))
    task = make_task(prior, 9)
    prior.pos_embedding[:, 0] = 1.5 * 2.0**-115
    noise = philox.gumbel_noise(task.seed, task.items, task.level, torch.tensor([0]), 77)[:, 0]
    assert torch.equal(decode(NativeDecoder(prior, 9, int8=True), task, 1)[:, 0], noise.argmax(dim=1))


def test_a_call_lets_other_threads_run_and_stays_short():
    prior = make_prior(width=256, depth=12, heads=1, context_len=4096, num_rows=64)
    decoder, task = NativeDecoder(prior, 1), make_task(prior)
    decoder.SECONDS_PER_CALL = 0.02
    decoder.prefill(task)
    decoder.run(0, 1)
    ticks, done = [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    clock = threading.Thread(target=tick)
    clock.start()
    decoder.run(1, 400)
    done.set()
    clock.join()
    assert len(ticks) > 3


def test_choose_backend_says_why_native_cannot_run():
    with pytest.raises(ValueError, match="native decoder cannot run on cpu: it takes float32 and float16"):
        choose_backend("native", torch.device("cpu"), torch.bfloat16)
    assert choose_backend("auto", torch.device("cpu"), torch.bfloat16).name == "eager"
    for dtype in (torch.float16, torch.float32):
        assert choose_backend("auto", torch.device("cpu"), dtype).name == "native"


def test_int8_is_chosen_only_if_asked_for():
    assert choose_backend("auto-int8", torch.device("cpu"), torch.float32).name == "native-int8"
    # What cannot run with int8 weights runs with whole ones, and its name is told.
    assert choose_backend("auto-int8", torch.device("cpu"), torch.bfloat16).name == "eager"


@pytest.mark.parametrize("name", ["auto", "auto-int8"])
def test_what_no_gpu_has_tested_is_taken_by_name_only(name, monkeypatch):
    """As on a GPU: Triton can run, the native decoder cannot."""
    on_gpu = [dataclasses.replace(b, missing=lambda *_: None) for b in BACKENDS if not b.name.startswith("native")]
    monkeypatch.setattr("fastjukebox.engine.decoder.BACKENDS", on_gpu)
    assert choose_backend(name, torch.device("cuda"), torch.float16).name == "eager"
    assert choose_backend("triton-int8", torch.device("cuda"), torch.float16).name == "triton-int8"


def test_conditioner_priors_sample_with_it():
    prior = make_prior(conditioner=ConditionerConfig(width=16, depth=2))
    upper = torch.randint(77, (2, 24))
    cond = prior.condition(upper)
    task = make_task(prior, 2)
    tasks = [WindowTask(**{**vars(task), "codes": task.codes.clone(), "frame_cond": cond}) for _ in range(2)]
    eager, ours = (decode(kind(prior, 2), one) for kind, one in zip((EagerDecoder, NativeDecoder), tasks))
    assert torch.equal(eager, ours)


def test_what_it_cannot_hold_is_refused():
    prior = make_prior()
    with pytest.raises(ValueError, match="3 items for a decoder of 2"):
        NativeDecoder(prior, 2).prefill(make_task(prior, batch=3))
    task = make_task(prior)
    with pytest.raises(ValueError, match=r"codes must be .* of torch\.int64, not torch\.int32"):
        decode(NativeDecoder(prior, 1), dataclasses.replace(task, codes=task.codes.int()))


@pytest.mark.linux
def test_no_room_for_threads_is_an_error_and_no_more():
    """In a process of its own: it gets no more memory, and each thread wants a stack of some MB."""
    pytest.importorskip("resource")
    code = f"""
import sys; sys.path[:0] = {[str(Path(__file__).parents[1]), str(Path(__file__).parent)]!r}
import conftest, pathlib, resource, types
from native_cases import decode, make_prior, make_task
from fastjukebox.engine.native_decoder import NativeDecoder
prior = make_prior(); task = make_task(prior)
decoder, draft = NativeDecoder(prior, 1), NativeDecoder(prior, 1)
expected = decode(decoder, make_task(prior)); decoder.begin(task); draft.begin(task)
used = 4096 * int(pathlib.Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (used + (30 << 20),) * 2)
decoder.team = types.SimpleNamespace(next_call=lambda seconds: (64, 8), measured=lambda *call: None)
decoder.prompt_team = decoder.team
drafts = lambda: decoder.speculate(draft, [0], 8, 10**6, 9, 64)
for run in (lambda: decoder.run(0, 8), lambda: decoder.extend(0, 8), drafts):
    try:
        run()
    except (OSError, MemoryError) as error:
        print(type(error).__name__, "64 threads" in str(error))
decoder.use_threads(1)
assert decode(decoder, make_task(prior)).equal(expected)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    *threads, buffers = done.stdout.splitlines()
    assert set(threads) <= {"OSError True", "MemoryError True"} and len(threads) == 2
    assert buffers == "MemoryError True"


def test_top_p_ends_where_denormals_are_flushed():
    """A logit of exactly zero, whose successor is a denormal."""
    code = (
        f"import sys; sys.path[:0] = {[str(folder) for folder in Path(__file__).parents[1::-1]]!r}\n"
        "import conftest, torch\n"
        "from native_cases import LevelSampling, decode, make_prior, make_task\n"
        "from fastjukebox.engine.native_decoder import NativeDecoder\n"
        "torch.set_num_threads(1)\n"
        "prior = make_prior(codebook_size=64)\n"
        "prior.token_embedding[:] = 0.05 * torch.randn_like(prior.token_embedding)\n"
        "prior.token_embedding[:40] = 0\n"
        "found = []\n"
        "for flush in (False, True):\n"
        "    torch.set_flush_denormal(flush)\n"
        "    task = make_task(prior, sampling=LevelSampling(1.0, 0, 0.05))\n"
        "    found.append(decode(NativeDecoder(prior, 1), task).clone())\n"
        "print(torch.equal(*found))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": torch.zeros(2, 40, dtype=torch.long)}, r"codes must be a contiguous tensor \(2, 96\)"),
        ({"codes": torch.zeros(2, 96)}, "of torch.int64, not torch.float32"),
        ({"items": torch.arange(1)}, r"items must be a contiguous tensor \(2,\)"),
        ({"frame_cond": torch.zeros(1, 96, 48)}, r"frame_cond must be a contiguous tensor \(2, 96, 48\)"),
        ({"frame_cond": torch.zeros(2, 96, 1).expand(2, 96, 48)}, "strides"),
        ({"start_cond": torch.zeros(2, 1, 47)}, r"start_cond must be a contiguous tensor \(2, 1, 48\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(changes, message):
    prior = make_prior(width=48, context_len=96, num_rows=8)
    with pytest.raises(ValueError, match=message):
        NativeDecoder(prior, 2).begin(dataclasses.replace(make_task(prior, 2), **changes))


@pytest.mark.parametrize("positions", [(0, 97), (-1, 4), (5, 4)])
def test_positions_beyond_the_window_are_refused(positions):
    prior = make_prior(width=48, context_len=96, num_rows=8)
    decoder = NativeDecoder(prior, 1)
    decoder.begin(make_task(prior))
    message = f"positions {positions[0]} to {positions[1]} of a window of 96"
    with pytest.raises(ValueError, match=message):
        decoder.decode(*positions, 1)
    with pytest.raises(ValueError, match=message):
        decoder.model.prefill(decoder._native_task, *positions, 0, 1)


def test_lyrics_may_be_longer_than_the_window():
    encoder = PriorConfig(0, 16, 1, 1, 300, 5, codebook_size=9)
    patterns = (Pattern.ROW, Pattern.CROSS)
    told = {"labels": LabelConfig(2, 2, 1), "lyrics": LyricConfig(9, 300, encoder)}
    prior = make_prior(context_len=24, num_rows=4, pattern_cycle=patterns, **told)
    told = {"lyrics": torch.randn(1, 300, prior.config.width), "start_cond": torch.randn(2, 1, prior.config.width)}
    tasks = [dataclasses.replace(make_task(prior, 2, 5), **told) for _ in range(2)]
    eager, ours = (decode(kind(prior, 2), task) for kind, task in zip((EagerDecoder, NativeDecoder), tasks))
    assert (eager == ours).float().mean() > 0.9
