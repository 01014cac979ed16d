"""Sampling end to end on a tiny random model, against a sampler of its own that knows no cache and no schedule."""

import dataclasses
import weakref

import numpy as np
import pytest
import torch
from fastjukebox.engine import VQVAE, Jukebox, JukeboxConfig, Prior, PriorConfig, SamplingParams, checkpoint
from fastjukebox.engine.config import ConditionerConfig, VQVAEConfig
from fastjukebox.engine.decoder import Backend, EagerDecoder, LevelSampling, WindowTask
from fastjukebox.engine.sampler import Sampling
from reference_sampler import kept, reference_codes

RATE = 44100
# Two windows at the top, four in the middle, ten at the bottom.
SAMPLES = 27 * 128
PARAMS = SamplingParams(seconds=SAMPLES / RATE, seed=2**63 + 5, hop_fraction=(0.75, 0.75, 0.5))
FEW = SamplingParams(seconds=25 * 128 / RATE, hop_fraction=1.0)


@pytest.fixture(scope="module")
def jukebox(tiny_model):
    return Jukebox.from_pretrained(tiny_model, backend="eager")


@pytest.fixture(scope="module")
def whole(jukebox):
    """Three items, undisturbed."""
    return jukebox.sample(dataclasses.replace(PARAMS, num_samples=3))


def no_codes(items=1):
    return torch.zeros(items, 0, dtype=torch.long)


def assert_same(result, expected, items=slice(None)):
    for level, (codes, wanted) in enumerate(zip(result.codes, expected.codes, strict=True)):
        assert torch.equal(codes, wanted[items]), f"level {level}"
    assert torch.equal(result.audio, expected.audio[items])


@pytest.mark.parametrize(
    ("params", "known_lengths"),
    [
        (dataclasses.replace(PARAMS, num_samples=2, first_item=1), (0, 0, 0)),
        (
            dataclasses.replace(
                PARAMS, num_samples=1, temperature=(0.8, 1.3, 1.0), top_k=(5, 0, 9), top_p=(1, 0.8, 0.9)
            ),
            (0, 0, 0),
        ),
        (dataclasses.replace(PARAMS, num_samples=2, seed=7), (320, 80, 20)),
    ],
    ids=["plain", "filtered", "prompted"],
)
def test_every_code_is_the_one_that_a_sampler_without_cache_draws(jukebox, params, known_lengths):
    known = [torch.randint(37, (params.num_samples, length)) for length in known_lengths]
    result = jukebox.sample(params, known)
    assert [codes.shape[1] for codes in result.codes] == [27 * 16, 27 * 4, 27]
    codes, ties = reference_codes(jukebox, params, known, result.codes)
    assert all(torch.equal(*pair) for pair in zip(codes, result.codes, strict=True))
    assert ties <= 1


def test_the_tiny_model_tells_codes_apart(whole):
    for codes in whole.codes:
        assert len(codes.unique()) > 15
        assert not torch.equal(codes[0], codes[1])
    assert whole.audio.std() > 0.1


def test_a_window_sees_the_upper_codes_above_it_and_no_others(jukebox):
    # One window of level 1 is left: codes 64 ... 95, so upper codes 16 ... 23.
    params = SamplingParams(seconds=24 * 128 / RATE, num_samples=8, level=1, hop_fraction=1.0)
    top, middle = torch.randint(37, (1, 24)), torch.randint(37, (1, 64))

    def sampled(top):
        return jukebox.sample(params, [no_codes(), middle, top]).codes[1][:, 64:]

    before = sampled(top)
    for upper in range(24):
        after = [sampled(torch.where(torch.arange(24) == upper, code, top)) for code in (3, 25)]
        assert all(torch.equal(codes, before) for codes in after) == (upper < 16), upper


def test_changing_an_upper_code_leaves_the_windows_before_it(jukebox):
    params = dataclasses.replace(PARAMS, level=1)
    top = torch.randint(37, (1, 27))
    before = jukebox.sample(params, [no_codes(), no_codes(), top]).codes[1]
    # Windows start at 0, 24, 48, 72, 76; upper code 16 stands above 64 ... 67, first seen by the window 48 ... 79.
    other = top.clone()
    other[:, 16] = (top[:, 16] + 11) % 37
    after = jukebox.sample(params, [no_codes(), no_codes(), other]).codes[1]
    assert torch.equal(after[:, :56], before[:, :56])
    assert not torch.equal(after[:, 56:], before[:, 56:])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_batch_of_three_equals_three_batches_of_one(tiny_model, dtype):
    jukebox = Jukebox.from_pretrained(tiny_model, dtype=dtype, backend="eager")
    params = dataclasses.replace(FEW, num_samples=3, first_item=4, level=0 if dtype == "float32" else 1)
    three = jukebox.sample(params)
    assert_same(jukebox.sample(dataclasses.replace(params, batch_size=2)), three)
    for item in range(3):
        one = jukebox.sample(dataclasses.replace(params, num_samples=1, first_item=4 + item))
        assert_same(one, three, slice(item, item + 1))


def test_batch_size_changes_nothing(jukebox, whole):
    assert_same(jukebox.sample(dataclasses.replace(PARAMS, num_samples=3, batch_size=2)), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("width", "codebook_size"), [(64, 48), (128, 512), (256, 192)])
def test_logits_of_an_item_do_not_depend_on_the_items_beside_it(randomize, dtype, width, codebook_size):
    prior = randomize(Prior(PriorConfig(0, width, 3, 2, 24, 4, codebook_size)), scale=0.6).to(dtype)
    x = torch.randn(16, width).to(dtype)
    with torch.no_grad():
        whole = prior.logits(x, None)
        for lanes in (2, 3, 5, 6, 8, 12):
            assert torch.equal(prior.logits(x[:lanes], None), whole[:lanes]), lanes


def test_by_time_equals_by_level(jukebox, whole):
    assert_same(jukebox.sample(dataclasses.replace(PARAMS, num_samples=3), order="time"), whole)


def test_previews_are_the_upper_levels_of_the_whole(jukebox, whole):
    for level, samples_per_code in ((1, 32), (2, 128)):
        preview = jukebox.sample(dataclasses.replace(PARAMS, num_samples=3, level=level))
        assert [codes.shape[1] for codes in preview.codes[:level]] == [0] * level
        for codes, expected in zip(preview.codes[level:], whole.codes[level:], strict=True):
            assert torch.equal(codes, expected)
        assert preview.audio.shape == (3, SAMPLES)
        assert preview.codes[level].shape[1] * samples_per_code == SAMPLES
        assert torch.equal(preview.audio, jukebox.decode(whole.codes[level], level))


def test_audio_is_the_decoded_bottom_level(jukebox, whole):
    assert whole.audio.dtype == torch.float32
    assert torch.equal(whole.audio, jukebox.decode(whole.codes[0]))


def test_items_and_seeds_have_their_own_noise(jukebox, whole):
    seeds = (0, 1, 2**32, 2**63 + 5, 2**64 - 1)
    tops = [jukebox.sample(dataclasses.replace(PARAMS, seed=seed, level=2)).codes[2] for seed in seeds]
    for index, codes in enumerate(tops):
        assert all((codes != other).float().mean() > 0.3 for other in tops[:index])
    assert torch.equal(tops[3][0], whole.codes[2][0])
    assert (whole.codes[2][0] != whole.codes[2][1]).float().mean() > 0.3


def test_settings_are_applied_at_their_own_level(jukebox, whole):
    params = dataclasses.replace(PARAMS, num_samples=3)
    for name, plain, changed in (("temperature", 0.99, 0.3), ("top_k", 0, 2), ("top_p", 1.0, 0.3)):
        for level in range(3) if name == "temperature" else (1, 2):
            values = tuple(changed if at == level else plain for at in range(3))
            # The levels above are given, so that this level is the first to be sampled.
            given = [no_codes(3) if at <= level else codes for at, codes in enumerate(whole.codes)]
            result = jukebox.sample(dataclasses.replace(params, level=level, **{name: values}), given)
            assert not torch.equal(result.codes[level], whole.codes[level])
            others = tuple(plain if at == level else changed for at in range(3))
            result = jukebox.sample(dataclasses.replace(params, level=level, **{name: others}), given)
            assert torch.equal(result.codes[level], whole.codes[level])


def test_greedy_codes_do_not_depend_on_the_seed(jukebox):
    first, second = (jukebox.sample(dataclasses.replace(FEW, top_k=1, seed=seed)) for seed in (1, 99))
    assert_same(first, second)
    nucleus = jukebox.sample(dataclasses.replace(FEW, top_p=1e-6, seed=5))
    assert_same(nucleus, first)


@pytest.mark.parametrize("sampling", [LevelSampling(1.0), LevelSampling(0.7, top_k=6), LevelSampling(1.5, top_p=0.7)])
def test_codes_come_as_often_as_the_softmax_says(jukebox, sampling):
    prior, items = jukebox.prior(2), 4_000
    codes = torch.zeros(items, prior.config.context_len, dtype=torch.long)
    decoder = EagerDecoder(prior, items)
    decoder.prefill(WindowTask(codes, 0, torch.arange(items), 11, 2, 1000, sampling))
    decoder.run(0, 1)
    with torch.no_grad():
        logits = prior(torch.zeros(1, 1, dtype=torch.long))[0, 0]
    expected = items * kept(logits, sampling.temperature, sampling.top_k, sampling.top_p).double().softmax(0)
    counts = codes[:, 0].bincount(minlength=37)
    assert not counts[expected == 0].any()
    # Codes of fewer than 5 expected draws are taken together, as chi squared asks.
    common = expected >= 5
    observed = torch.cat([counts[common], counts[~common].sum()[None]]).double()
    wanted = torch.cat([expected[common], expected[~common].sum()[None]])
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    assert len(wanted) > 4
    # Four standard deviations above the mean of chi squared.
    degrees = len(wanted) - 1
    assert ((observed - wanted) ** 2 / wanted).sum() < degrees + 4 * (2 * degrees) ** 0.5


@pytest.mark.parametrize("samples", [1, 129, 391, 1001, 3073])
def test_any_number_of_samples_is_kept_exactly(jukebox, samples):
    params = SamplingParams(seconds=samples / RATE, hop_fraction=1.0)
    result = jukebox.sample(params)
    assert result.audio.shape == (1, samples)
    assert result.audio.isfinite().all()
    assert result.codes[0].shape == (1, -(-samples // 128) * 16)
    assert torch.equal(torch.cat(list(jukebox.stream(params)), dim=1), result.audio)


def test_a_partial_window_is_the_head_of_a_full_one(jukebox):
    full = jukebox.sample(SamplingParams(seconds=384 / RATE))
    part = jukebox.sample(SamplingParams(seconds=200 / RATE))
    assert [codes.shape[1] for codes in full.codes] == [48, 12, 8]
    assert [codes.shape[1] for codes in part.codes] == [32, 12, 8]
    for codes, head in zip(full.codes, part.codes, strict=True):
        assert torch.equal(codes[:, : head.shape[1]], head)


@pytest.mark.parametrize("prompt_samples", [300, 3100])
def test_a_continuation_begins_with_its_prompt(jukebox, prompt_samples):
    prompt = torch.rand(2, prompt_samples) - 0.5
    params = dataclasses.replace(PARAMS, num_samples=2)
    result = jukebox.continue_audio(prompt, params)
    assert result.audio.shape == (2, SAMPLES)
    for codes, given, ratio in zip(result.codes, jukebox.encode(prompt), (16, 4, 1), strict=True):
        assert given.shape == (2, prompt_samples // 128 * ratio)
        assert torch.equal(codes[:, : given.shape[1]], given)
        assert codes.shape[1] == 27 * ratio
    one = jukebox.continue_audio(prompt[0], params)
    assert torch.equal(one.codes[2][0], result.codes[2][0])
    assert torch.equal(one.codes[2][1, : prompt_samples // 128], result.codes[2][0, : prompt_samples // 128])
    assert not torch.equal(one.codes[2][1], one.codes[2][0])


def test_a_prompt_that_fills_the_target_is_refused(jukebox):
    with pytest.raises(ValueError, match="leaves nothing to sample"):
        jukebox.continue_audio(torch.zeros(SAMPLES), PARAMS)


def test_upsampling_keeps_what_is_given(jukebox, whole):
    params = SamplingParams(seed=PARAMS.seed, num_samples=3, hop_fraction=PARAMS.hop_fraction)
    assert_same(jukebox.upsample([None, None, whole.codes[2]], params), whole)
    assert_same(jukebox.upsample([None, whole.codes[1], whole.codes[2]], params), whole)
    # The level above the coarsest given one is of no use.
    result = jukebox.upsample([None, whole.codes[1], None], params)
    assert torch.equal(result.codes[0], whole.codes[0])
    assert result.codes[2].shape == (3, 0)
    assert torch.equal(result.audio, whole.audio)


def test_short_codes_are_upsampled_with_a_window_of_upper_codes(jukebox):
    top = torch.randint(37, (1, 3))
    result = jukebox.upsample([None, None, top], SamplingParams())
    assert torch.equal(result.codes[2][:, :3], top)
    assert [codes.shape[1] for codes in result.codes] == [48, 12, 8]
    assert result.audio.shape == (1, 384)


def test_one_prior_is_in_memory_at_a_time(jukebox, tiny_model):
    alive, held = [], {}

    def source(level, resident):
        assert not resident
        if level not in held:
            held.clear()
            assert not any(prior() for prior in alive), f"another prior is alive when level {level} is loaded"
            held[level] = checkpoint.load_prior(tiny_model, level)
            alive.append(weakref.ref(held[level]))
        return held[level]

    sampling = Sampling(jukebox.config, FEW, 25 * 128, [no_codes()] * 3)
    list(sampling.run(source, jukebox.backend))
    assert len(alive) == 3


def test_buffers_do_not_grow_with_the_length(tiny_model):
    def buffers(samples):
        decoders = []

        def build(prior, batch):
            decoders.append(EagerDecoder(prior, batch))
            return decoders[-1]

        jukebox = Jukebox.from_pretrained(tiny_model, backend="eager")
        jukebox.backend = Backend("watched", build, lambda device, dtype: None)
        jukebox.sample(SamplingParams(seconds=samples / RATE, num_samples=5, hop_fraction=1.0))
        return [decoder.cache.nbytes for decoder in decoders]

    short = buffers(200)
    assert short == buffers(25 * 128)
    # Keys and values of 5 lanes, 2 heads of 4 numbers, for a row, all, and two rows.
    assert short == [2 * 5 * 2 * 4 * 4 * (row + size + 2 * row) for row, size in ((6, 24), (8, 32), (8, 48))]


def test_progress_counts_every_code_once(jukebox):
    progress = []
    jukebox.sample(dataclasses.replace(FEW, num_samples=2, batch_size=1), progress=progress.append)
    assert progress[-1].done == progress[-1].total == 2 * 25 * 21
    done = [report.done for report in progress]
    assert done == sorted(set(done))
    assert [report.level for report in progress] == sorted((report.level for report in progress), reverse=True)
    assert all(report.eta > 0 for report in progress[:-1])
    assert progress[-1].eta == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seconds": 0}, "seconds must be above 0"),
        ({"seconds": -1.0}, "seconds must be above 0"),
        ({"seconds": float("nan")}, "seconds must be above 0"),
        ({"seconds": 1e9}, "at most 43200"),
        ({"seconds": True}, "seconds must be above 0"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"seed": 2**64}, "seed must be a whole number"),
        ({"num_samples": 0}, "num_samples must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"temperature": 0.0}, "temperature must be at least 1e-06"),
        ({"temperature": (1.0, -1.0, 1.0)}, "temperature must be at least 1e-06"),
        ({"temperature": float("nan")}, "temperature must be at least 1e-06"),
        ({"top_k": -1}, "top_k must be a whole number"),
        ({"top_k": 2.5}, "top_k must be a whole number"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.01}, "top_p must be above 0 and at most 1"),
        ({"hop_fraction": 0.0}, "hop_fraction must be above 0"),
        ({"seconds": "5"}, "seconds must be above 0"),
        ({"temperature": "0.9"}, "temperature must be at least"),
        ({"temperature": np.ones(3)}, "temperature must be at least"),
        # Not the same as to leave them out.
        ({"temperature": None}, "temperature must be at least"),
        ({"temperature": 10**400}, "temperature must be at least"),
        ({"seed": torch.tensor(5.5)}, "seed must be a whole number"),
        ({"seed": np.array([1, 2])}, "seed must be a whole number"),
        ({"top_k": None}, "top_k must be a whole number"),
        ({"top_p": None}, "top_p must be above 0"),
        ({"top_p": (0.9, None, 0.9)}, "top_p must be above 0"),
    ],
)
def test_senseless_requests_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**{"seconds": 1.0, **changes})


def test_bounds_are_taken(jukebox):
    params = SamplingParams(seconds=12 * 3600, seed=2**64 - 1, temperature=1e-6, top_k=2**32 + 1, hop_fraction=1)
    assert (params.seconds, params.temperature) == (43200, 1e-6)
    # Decoders hold 32 bits.
    sampling = Sampling(jukebox.config, params, SAMPLES, [no_codes()] * 3)
    assert [level.top_k for level in sampling.settings] == [37] * 3


def test_requests_that_the_model_cannot_meet_are_refused(jukebox):
    top = torch.zeros(1, 27, dtype=torch.long)
    for params, codes, message in (
        (SamplingParams(), None, "seconds is needed"),
        (dataclasses.replace(PARAMS, level=3), None, "level 3 does not exist"),
        (dataclasses.replace(PARAMS, top_k=(1, 2)), None, "top_k has 2 values, the model has 3 levels"),
        (dataclasses.replace(PARAMS, hop_fraction=0.3), None, "hop fraction 0.3 of level 0"),
        (PARAMS, [no_codes(), no_codes(), top + 37], "level 2 codes must be 0 to 36"),
        (PARAMS, [no_codes(), no_codes(), top - 1], "level 2 codes must be 0 to 36"),
        (PARAMS, [no_codes(), top], "a list of 3 levels, the finest first, not of 2"),
        (dataclasses.replace(PARAMS, num_samples=3), [no_codes(), no_codes(), top.expand(2, -1)], "are for 2 items"),
        (PARAMS, [torch.zeros(1, 27 * 16, dtype=torch.long), no_codes(), top], "nothing is left to sample"),
    ):
        with pytest.raises(ValueError, match=message):
            jukebox.sample(params, codes)


def test_sampling_needs_a_prior_for_every_level(jukebox):
    partial = dataclasses.replace(jukebox.config, priors=jukebox.config.priors[:2])
    with pytest.raises(ValueError, match="a prior for each of 3 levels, the model has 2"):
        Sampling(partial, PARAMS, SAMPLES, [no_codes()] * 3)


def test_backends_and_devices_that_cannot_run_are_named(tiny_model):
    with pytest.raises(ValueError, match=r"backend must be auto, .*eager"):
        Jukebox.from_pretrained(tiny_model, backend="quantum")
    with pytest.raises(ValueError, match="dtype must be float32, float16, bfloat16, not 'float64'"):
        Jukebox.from_pretrained(tiny_model, dtype=torch.float64)
    with pytest.raises(ValueError, match="dtype must be float32"):
        Jukebox.from_pretrained(tiny_model, dtype="float8")
    with pytest.raises(ValueError, match="device 'nowhere' cannot be used"):
        Jukebox.from_pretrained(tiny_model, device="nowhere")


def test_four_level_stacks_sample_too(randomize, tmp_path):
    vqvae = VQVAEConfig(20, 4, (1, 1, 1, 1), (2, 2, 2, 2), width=4, depth=1, multipliers=(1, 1, 1, 1))
    upper = ConditionerConfig(width=8, depth=1, stages=1)
    priors = tuple(
        PriorConfig(level, 16, 2, 1, 8, 2, codebook_size=20, conditioner=upper if level < 3 else None)
        for level in range(4)
    )
    config = JukeboxConfig(vqvae, priors)
    checkpoint.save_config(tmp_path, config)
    checkpoint.save_network(tmp_path / checkpoint.VQVAE_FILE, randomize(VQVAE(vqvae)))
    for prior in priors:
        checkpoint.save_network(tmp_path / checkpoint.prior_file(prior.level), randomize(Prior(prior)))
    jukebox = Jukebox.from_pretrained(tmp_path, backend="eager")
    params = SamplingParams(seconds=150 / RATE, num_samples=2)
    result = jukebox.sample(params)
    assert [codes.shape[1] for codes in result.codes] == [80, 40, 20, 10]
    assert_same(jukebox.sample(params, order="time"), result)
