"""Drafts change no code on a GPU either; in Triton's interpreter, or by plain PyTorch, where there is none."""

import copy
import dataclasses

import pytest
import torch
from fastjukebox.engine import Jukebox, Prior, PriorConfig
from fastjukebox.engine.config import LabelConfig, LyricConfig
from fastjukebox.engine.decoder import Backend, LevelSampling
from fastjukebox.engine.graph_decoder import GraphDecoder
from fastjukebox.engine.patterns import Pattern
from fastjukebox.engine.speculative_decoder import SpeculativeDecoder, with_drafts
from fastjukebox.kernels import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_models import PARAMS, top_priors, write_model
from resumed import assert_same, stopped_and_resumed
from test_graph_decoder import CONFIG, decode, make_task
from test_speculative_decoder import changed

FACTORED = (Pattern.ROW, Pattern.COLUMN, Pattern.PREVIOUS_ROW)


@pytest.fixture(scope="module", autouse=True)
def _triton():
    pytest.importorskip("triton")


@pytest.fixture(scope="module")
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def nearly(prior, off):
    """A copy that draws other codes here and there."""
    other = copy.deepcopy(prior)
    with torch.no_grad():
        for tensor in other.parameters():
            tensor += off * tensor.std(correction=0) * torch.randn_like(tensor)
    return other


@pytest.fixture
def drafting(monkeypatch):
    """A decoder that always drafts so many codes."""

    def build(prior, draft, length, int8=False, ops=None, batch=1):
        monkeypatch.setattr(SpeculativeDecoder, "LENGTHS", (length,))
        decoders = (GraphDecoder(each, batch, int8=int8, ops=ops) for each in (prior, draft))
        return SpeculativeDecoder(*decoders, batch, 999)

    return build


@pytest.mark.parametrize(
    ("length", "prompt_len", "cuts", "items", "batch"),
    [(4, 0, (5,), 1, 1), (3, 5, (), 1, 2), (8, 8, (9,), 1, 1), (3, 4, (9,), 3, 4)],
)
def test_codes_equal_those_without_drafts(randomize, device, drafting, length, prompt_len, cuts, items, batch):
    prior = randomize(Prior(CONFIG)).to(device)
    decoder = drafting(prior, nearly(prior, 0.3), length, batch=batch)
    codes = decode(decoder, make_task(prior, items, prompt_len), *cuts)
    assert torch.equal(codes, decode(GraphDecoder(prior, items), make_task(prior, items, prompt_len)))
    assert decoder.written >= (11 - prompt_len) * items


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_any_prior_draft_and_window(randomize, data):
    row_len, num_rows = data.draw(st.integers(2, 9)), data.draw(st.integers(1, 6))
    context = row_len * num_rows
    cycle = data.draw(st.sampled_from([FACTORED, (Pattern.DENSE,)]))
    config = PriorConfig(0, 8, 3, 2, context, num_rows, codebook_size=data.draw(st.integers(2, 40)))
    config = dataclasses.replace(config, pattern_cycle=cycle, scale_residual=data.draw(st.booleans()))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    prior = randomize(Prior(config))
    off = data.draw(st.sampled_from([0.0, 0.1, 0.5, 3.0]))
    int8 = data.draw(st.booleans())
    # Of another depth, so that it is another network.
    draft = nearly(prior, off) if off else randomize(Prior(dataclasses.replace(config, depth=1)))
    lengths = tuple(sorted(data.draw(st.sets(st.sampled_from([1, 2, 3, 5, 8, 16]), min_size=1, max_size=3))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpeculativeDecoder, "LENGTHS", lengths)
        batch = data.draw(st.integers(1, 3))
        both = (GraphDecoder(each, batch, int8=int8, ops=reference) for each in (prior, draft))
        decoder, plain = SpeculativeDecoder(*both, batch, 999), GraphDecoder(prior, batch, int8=int8, ops=reference)
        for conditioned in data.draw(st.lists(st.booleans(), min_size=1, max_size=3)):
            prompt_len = data.draw(st.integers(0, context - 1))
            cuts = sorted(data.draw(st.sets(st.integers(prompt_len, context), max_size=3)))
            sampling = LevelSampling(*data.draw(st.sampled_from([(0.99, 0, 1.0), (0.8, 5, 0.9)])))
            item, items = data.draw(st.integers(0, 3)), data.draw(st.integers(1, batch))
            tasks = [make_task(prior, items, prompt_len, conditioned, item, sampling) for _ in range(2)]
            codes, expected = decode(decoder, tasks[0], *cuts), decode(plain, tasks[1])
            assert torch.equal(codes, expected)
    assert decoder.right <= decoder.written


def test_good_drafts_are_kept_and_counted(randomize, drafting):
    config = dataclasses.replace(CONFIG, context_len=96, num_rows=8)
    prior = randomize(Prior(config))
    decoder = drafting(prior, copy.deepcopy(prior), 8, ops=reference)
    decode(decoder, make_task(prior, prompt_len=5))
    assert decoder.right == decoder.written == 91
    # A row of 12 takes two checks, whatever its first position; what is left of the first takes one.
    assert decoder.target.cycles[8].run([48], 60, 9) == (12, 2, 12)
    # But for position 0, which is not drafted, and which the draft has to see.
    decode(decoder, make_task(prior))
    assert decoder.right == decoder.written - 1 == 91 + 95


def test_a_window_s_first_code_is_a_step_of_all_items(randomize, drafting, monkeypatch):
    """Though nothing is drafted."""
    prior, measured = randomize(Prior(CONFIG)), []
    decoder = drafting(prior, prior, 4, ops=reference, batch=3)
    decoder.prefill(make_task(prior, 3))
    monkeypatch.setattr(decoder, "_measured", lambda threads, length, steps, seconds: measured.append(steps))
    decoder.run(0, 1)
    assert measured == [1]


def test_items_come_to_positions_of_their_own(randomize, drafting):
    """A few checks at a time: each item counts for itself, and ends where all are to stop."""
    config = dataclasses.replace(CONFIG, context_len=96, num_rows=8)
    prior = randomize(Prior(config))
    decoder = drafting(prior, nearly(prior, 0.3), 4, ops=reference, batch=3)
    task, expected = (make_task(prior, 3, 12) for _ in range(2))
    decode(GraphDecoder(prior, 3, ops=reference), expected)
    decoder.prefill(task)
    decoder.draft.extend(0, 12)
    target, draft, reached, apart = decoder.target, decoder.draft, [12, 12, 12], 0
    with torch.inference_mode():
        while min(reached) < 96:
            stop, before = (30 if min(reached) < 30 else 96), list(reached)
            right, checks, drafted = target.speculate(draft, reached, stop, 4, 2)
            moved = [now - then for now, then in zip(reached, before)]
            assert max(reached) <= stop and all(moved[i] or before[i] == stop for i in range(3))
            assert 0 <= sum(moved) - right <= checks <= 2 * sum(pos < stop for pos in before) and drafted >= sum(moved)
            apart += len(set(reached)) > 1
            if min(reached) == stop:
                assert torch.equal(task.codes[:, :stop], expected.codes[:, :stop])
    assert apart > 5


def test_a_check_too_many_changes_nothing(randomize, drafting):
    """Also, a draft goes on with the right codes."""
    prior = randomize(Prior(CONFIG))
    decoder = drafting(prior, nearly(prior, 0.3), 4, ops=reference)
    for stop in (7, 12):
        task = make_task(prior, prompt_len=2)
        decoder.prefill(task)
        decoder.run(2, stop)
        cycle, codes = decoder.target.cycles[4], task.codes.clone()
        state = [tensor.clone() for each in (decoder.target, decoder.draft) for tensor in caches(each, 1, stop)]
        counts = cycle.counts.clone()
        cycle.draft.go_to(stop - 1)
        with torch.inference_mode():
            for _ in range(3):
                cycle._replay()
        assert torch.equal(cycle.codes[:, :stop], codes[:, :stop])
        assert torch.equal(cycle.counts, counts) and cycle.reached.item() == stop
        for before, after in zip(state, (t for each in (decoder.target, decoder.draft) for t in caches(each, 1, stop))):
            torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-5)


def caches(decoder, start, stop):
    """What positions of the last row before `stop` have put into each layer's cache."""
    start = max(start, (stop - 1) // decoder.prior.config.row_len * decoder.prior.config.row_len)
    return [layer.kv[:, :, :, [layer.slot(pos) for pos in range(start, stop)]] for layer in decoder.cache.layers]


@pytest.mark.parametrize("items", [1, 3])
def test_plain_steps_and_drafts_take_turns(randomize, monkeypatch, items):
    """Whatever the trials choose: the draft sees what was decoded without it, each finds the other's cache."""
    monkeypatch.setattr(SpeculativeDecoder, "LENGTHS", (1, 4))
    config = dataclasses.replace(CONFIG, context_len=60, num_rows=6)
    prior = randomize(Prior(config))
    decoder = SpeculativeDecoder(*(GraphDecoder(prior, 3, ops=reference) for _ in range(2)), 3)
    choices = iter([1, 4, 1, 1, 4, 4, 1, 4] * 20)
    monkeypatch.setattr(decoder, "_next_call", lambda: (1, (length := next(choices)), 3 + length))
    monkeypatch.setattr(decoder, "_measured", lambda *measured: None)
    decoder.lengths[items, 1] = type("Lost", (), {"lost": 0.0, "recent": {}})()
    codes = decode(decoder, make_task(prior, items, 3), 20, 41)
    assert torch.equal(codes, decode(GraphDecoder(prior, 3, ops=reference), make_task(prior, items, 3)))
    # The same network with the same codes before it guesses all of them.
    assert decoder.right == decoder.written > 20


def test_a_prompt_may_end_with_what_is_no_code(randomize, drafting):
    """As lyrics before the codes: a draft waits at a row's end for the position after them."""
    patterns = (Pattern.ROW, Pattern.LYRICS, Pattern.PREVIOUS_ROW)
    told = {"labels": LabelConfig(2, 2, 1), "lyrics": LyricConfig(7, 15), "pattern_cycle": patterns}
    prior = randomize(Prior(PriorConfig(0, 16, 3, 2, 20, 5, codebook_size=19, **told)))
    tasks = [make_task(prior, 1, 15) for _ in range(2)]
    for task in tasks:
        task.codes[:, :15] = 19 + torch.arange(15) % 7
    decoder = drafting(prior, nearly(prior, 0.3), 2, ops=reference)
    assert torch.equal(decode(decoder, tasks[0]), decode(GraphDecoder(prior, 1, ops=reference), tasks[1]))


def test_what_does_not_fit_is_refused(randomize):
    prior = randomize(Prior(CONFIG))
    decoder = GraphDecoder(prior, 1, ops=reference)
    decoder.expect_drafts(GraphDecoder(prior, 1, ops=reference), (4,))
    with pytest.raises(ValueError, match="2 items for a decoder of 1"):
        decoder.begin(make_task(prior, 2))
    decoder.prefill(make_task(prior, 1, 3))
    with pytest.raises(ValueError, match="3 is next"):
        decoder.speculate(decoder.cycles[4].draft, [4], 8, 4, 9)


@pytest.mark.parametrize("kind", ["none", *top_priors()])
def test_requests_give_the_same_with_drafts(kind, tiny_model, tiny_config, tmp_path, monkeypatch, decoders):
    """Labels, lyrics, windows with prompts, several items."""
    monkeypatch.setattr(SpeculativeDecoder, "LENGTHS", (4,))
    labelled = kind != "none"
    folder = write_model(tmp_path / kind, kind, tiny_config) if labelled else tiny_model
    backend = Backend(
        "triton", lambda prior, batch: GraphDecoder(prior, batch, ops=reference), lambda *_: None, drafts=32
    )
    plain, jukebox, draft = (
        Jukebox.from_pretrained(model, "cpu", torch.float32, "eager")
        for model in (folder, folder, changed(folder, tmp_path / "draft"))
    )
    plain.backend, jukebox.backend, jukebox.draft = backend, with_drafts(backend, draft.prior), draft
    labels = dataclasses.replace(PARAMS.labels, lyrics="") if kind == "labels" else PARAMS.labels
    params = dataclasses.replace(PARAMS, num_samples=1, first_item=4, labels=labels if labelled else None)
    expected = plain.sample(params)
    assert_same(jukebox.sample(params), expected)
    assert_same(jukebox.sample(params, order="time"), expected)
    several = dataclasses.replace(params, num_samples=3, batch_size=2)
    before = sum(decoder.written for decoder in decoders)
    assert_same(jukebox.sample(several), plain.sample(several))
    assert 0 < before < sum(decoder.written for decoder in decoders)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("int8", [False, True])
def test_a_window_of_the_models_width(randomize, device, drafting, dtype, int8):
    """All patterns and rows: to the bit the codes without drafts, whatever their length, and again."""
    if int8 and dtype != torch.float16:
        pytest.skip("int8 is beside FP16")
    config = PriorConfig(level=0, width=1920, depth=3, heads=1, context_len=512, num_rows=8)
    prior = randomize(Prior(config)).to(device, dtype)
    draft = nearly(prior, 0.1)
    expected = decode(GraphDecoder(prior, 4, int8=int8), make_task(prior, 4, 70))
    for items, length in ((1, 4), (1, 8), (1, 16), (4, 2), (3, 8)):
        decoder = drafting(prior, draft, length, int8, batch=items)
        for _ in range(2):
            assert torch.equal(decode(decoder, make_task(prior, items, 70), 100, 301), expected[:items])


@pytest.mark.gpu
@pytest.mark.parametrize("cycle", [FACTORED, (Pattern.DENSE, Pattern.LYRICS, Pattern.ROW)])
def test_windows_of_every_kind(randomize, device, cycle):
    """With conditions and without, which are different graphs, window after window in one decoder."""
    told = {"labels": LabelConfig(2, 2, 1), "lyrics": LyricConfig(7, 15)} if Pattern.LYRICS in cycle else {}
    config = PriorConfig(0, 48, 3, 2, 96, 6, codebook_size=37, pattern_cycle=cycle, **told)
    prior = randomize(Prior(config)).to(device)
    decoder = SpeculativeDecoder(*(GraphDecoder(each, 2) for each in (prior, nearly(prior, 0.3))), 2)
    plain = GraphDecoder(prior, 2)
    for items, *window in ((2, 15, True, 3), (1, 40, False, 0), (2, 0 if not told else 15, True, 2)):
        # A start that a prior with labels has no token for.
        tasks = [
            dataclasses.replace(make_task(prior, items, *window), start_cond=start(prior, items)) for _ in range(2)
        ]
        assert torch.equal(decode(decoder, tasks[0], 50, 77), decode(plain, tasks[1]))


def start(prior, items):
    return torch.ones(items, 1, prior.config.width, device=prior.device, dtype=prior.dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "triton-int8"])
def test_requests_on_a_gpu(tiny_model, tmp_path, backend):
    """As users make them: drafts of several lengths, by trials; a run that is stopped and resumed."""
    draft = changed(tiny_model, tmp_path / "draft")
    params = dataclasses.replace(PARAMS, num_samples=3, batch_size=2, labels=None)
    expected = Jukebox.from_pretrained(tiny_model, "cuda", backend=backend).sample(params)
    jukebox = Jukebox.from_pretrained(tiny_model, "cuda", backend=backend, draft=draft)
    assert_same(jukebox.sample(params), expected)
    assert_same(jukebox.sample(params, order="time"), expected)
    assert_same(stopped_and_resumed(jukebox, params, tmp_path / "run", 30, draft)[0], expected)
