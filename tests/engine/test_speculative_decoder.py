"""Drafts change no code: neither good ones nor bad ones, of whatever length, on any number of threads."""

import dataclasses
import shutil
from types import SimpleNamespace

import pytest
import torch
from fastjukebox.engine import Jukebox, Prior, SamplingParams, checkpoint
from fastjukebox.engine.decoder import LevelSampling, choose_backend
from fastjukebox.engine.native_decoder import NativeDecoder
from fastjukebox.engine.speculative_decoder import SpeculativeDecoder, check_drafts, with_drafts
from fastjukebox.kernels import native_library
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_models import PARAMS, top_priors, write_model
from native_cases import decode, make_prior, make_task, seen
from resumed import assert_same, stopped_and_resumed
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.skipif(
    native_library.missing() is not None, reason=f"native decoder: {native_library.missing()}"
)


@pytest.fixture
def always_drafts(monkeypatch):
    """Drafts of four codes, however slow they are on tiny networks."""
    monkeypatch.setattr(SpeculativeDecoder, "LENGTHS", (4,))


def nearly(prior, change):
    """A prior that guesses some codes of `prior` right and others wrong."""
    other = Prior(prior.config).eval().requires_grad_(False)
    other.load_state_dict(prior.state_dict())
    for parameter in other.parameters():
        parameter.add_(change * torch.randn_like(parameter))
    return other


def schedule(decoder, data, monkeypatch):
    """Calls of any threads, lengths and codes."""
    threads, lengths, codes = st.integers(1, 3), st.sampled_from([1, 1, 2, 3, 5, 9]), st.integers(1, 20)
    monkeypatch.setattr(decoder, "_next_call", lambda: data.draw(st.tuples(threads, lengths, codes)))
    monkeypatch.setattr(decoder, "_measured", lambda *call: None)
    monkeypatch.setattr(decoder, "_lengths", lambda threads: SimpleNamespace(lost=0.0))
    return decoder


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    heads=st.sampled_from([1, 2, 4]),
    head_dim=st.sampled_from([3, 16]),
    mlp_ratio=st.sampled_from([1.0, 2.0]),
    depth=st.integers(1, 5),
    num_rows=st.integers(1, 6),
    row_len=st.integers(1, 20),
    another=st.booleans(),
    change=st.sampled_from([0.0, 0.02, 1.0]),
    int8=st.booleans(),
    cond=st.booleans(),
    alone=st.sampled_from([0, 1 << 20]),
    top_k=st.sampled_from([0, 0, 1, 7]),
    top_p=st.sampled_from([1.0, 0.9]),
    items=st.sampled_from([1, 1, 2, 3, 5]),
    spare=st.integers(0, 1),
    data=st.data(),
)
def test_codes_are_those_of_the_decoder_without_drafts(
    heads,
    head_dim,
    mlp_ratio,
    depth,
    num_rows,
    row_len,
    another,
    change,
    int8,
    cond,
    alone,
    top_k,
    top_p,
    items,
    spare,
    data,
):
    sizes = {"width": 64, "attn_ratio": heads * head_dim / 64, "heads": heads, "depth": depth}
    sizes |= {"mlp_ratio": mlp_ratio, "context_len": num_rows * row_len, "num_rows": num_rows}
    prior = make_prior(**sizes)
    # Of another shape, it guesses almost nothing right.
    other = {"depth": 1, "width": 64, "heads": 1}
    draft = make_prior(1, **(sizes | other)) if another else nearly(prior, change)
    prompt_len = data.draw(st.integers(0, num_rows * row_len - 1))
    tasks = [make_task(prior, items, prompt_len, cond, LevelSampling(1.0, top_k, top_p)) for _ in range(2)]
    expected = decode(NativeDecoder(prior, items, int8), tasks[0])
    decoder = SpeculativeDecoder(*(NativeDecoder(each, items + spare, int8) for each in (prior, draft)), items + spare)
    with pytest.MonkeyPatch.context() as patches, native_library.items_alone(alone):
        assert torch.equal(decode(schedule(decoder, data, patches), tasks[1]), expected)
    if not another and not change:
        assert decoder.right == decoder.written


@pytest.mark.usefixtures("always_drafts")
def test_nothing_is_left_of_the_window_before():
    prior = make_prior()
    decoder = SpeculativeDecoder(NativeDecoder(prior, 1), NativeDecoder(nearly(prior, 0.0), 1))
    for seed, prompt_len in ((1, 0), (2, 40)):
        decode(decoder, make_task(prior, 1, prompt_len, seed=seed))
    assert decoder.right == decoder.written == 96 + 56


@pytest.mark.parametrize("isa", native_library.INSTRUCTION_SETS)
@pytest.mark.parametrize("int8", [False, True])
def test_every_instruction_set_checks_drafts_alike(isa, int8):
    prior = make_prior(width=128, heads=4, context_len=144, num_rows=6)
    draft = nearly(prior, 0.02)
    expected = decode(NativeDecoder(prior, 1, int8), make_task(prior, 1, 20, cond=True))
    target, drafts = NativeDecoder(prior, 1, int8), NativeDecoder(draft, 1, int8)
    with native_library.limited_to(isa):
        for length, threads in ((2, 1), (5, 2), (8, 1), (16, 2), (24, 4)):
            task, reached = make_task(prior, 1, 20, cond=True), [20]
            for decoder in (target, drafts):
                decoder.prefill(task)
            right, checks, drafted = target.speculate(drafts, reached, 144, length, 200, threads)
            assert torch.equal(task.codes, expected) and reached == [144]
            # Some of each, or this shows nothing.
            assert 20 < right < 110 and 124 - right <= checks <= 124 <= drafted <= length * checks


def test_what_is_counted_and_written_ends_at_the_stop():
    """Rows of 24 codes, from the last 4 of one to the first 10 of the sixth: drafts end with a row."""
    prior = make_prior(context_len=144, num_rows=6)
    target, draft, task, reached = NativeDecoder(prior, 1), NativeDecoder(prior, 1), make_task(prior, 1, 20), [20]
    for decoder in (target, draft):
        decoder.prefill(task)
    assert target.speculate(draft, reached, 130, 5, 99, 1) == (110, 1 + 4 * 5 + 2, 110) and reached == [130]
    assert (task.codes[0, :130] >= 0).all() and (task.codes[0, 130:] == -1).all()
    assert target.speculate(draft, reached, 137, 5, 99, 1) == (7, 2, 7) and (task.codes[0, 137:] == -1).all()


def test_items_go_on_from_where_each_of_them_is():
    """And end after so many checks, or where they are to stop: who is there already does nothing."""
    prior = make_prior(context_len=144, num_rows=6)
    task, reached = make_task(prior, 3, 24), [24, 24, 24]
    target, draft = NativeDecoder(prior, 3), NativeDecoder(prior, 3)
    for decoder in (target, draft):
        decoder.prefill(task)
    assert target.speculate(draft, reached, 24 + 8, 4, 1, 1) == (12, 3, 12) and reached == [28, 28, 28]
    # Two of them as if they were still to be sampled.
    reached[:2] = 24, 27
    assert target.speculate(draft, reached, 28, 4, 9, 2) == (5, 2, 5) and reached == [28, 28, 28]
    reached[1] = 25
    assert target.speculate(draft, reached, 36, 2, 3, 2) == (18, 9, 18) and reached == [34, 31, 34]
    assert target.speculate(draft, reached, 34, 2, 9, 1) == (3, 2, 3) and reached == [34, 34, 34]
    assert target.speculate(draft, reached, 34, 2, 9, 1) == (0, 0, 0)
    target.decode(34, 144, 1)
    assert torch.equal(task.codes, decode(NativeDecoder(prior, 3), make_task(prior, 3, 24)))


def test_few_items_are_drafted_and_many_are_not():
    prior = make_prior()
    backend = with_drafts(choose_backend("native", torch.device("cpu"), torch.float32), lambda level: prior)
    assert isinstance(backend.build(prior, 9), NativeDecoder)
    for batch, lengths in ((1, [1, 2, 4, 8, 16]), (2, [1, 2, 4, 8]), (3, [1, 2, 4]), (5, [1, 2]), (8, [1, 2])):
        drafting = backend.build(prior, batch)
        assert isinstance(drafting, SpeculativeDecoder) and drafting.choices == lengths
        with pytest.raises(ValueError, match=f"{batch + 1} items for a decoder of {batch}"):
            drafting.begin(make_task(prior, batch + 1))


@pytest.mark.usefixtures("always_drafts")
def test_what_a_draft_is_told_apart_is_its_own():
    """A draft of another width with conditions of its own, in the same codes."""
    prior, draft = make_prior(), make_prior(width=32)
    task, expected = make_task(prior, 1, 10, cond=True), make_task(prior, 1, 10, cond=True)
    told = make_task(draft, 1, 10, cond=True)
    task = dataclasses.replace(task, draft=dataclasses.replace(told, codes=task.codes))
    decoder = SpeculativeDecoder(NativeDecoder(prior, 1), NativeDecoder(draft, 1))
    assert torch.equal(decode(decoder, task), decode(NativeDecoder(prior, 1), expected))
    alone = NativeDecoder(draft, 1)
    last = prior.config.context_len - 1
    alone.prefill(dataclasses.replace(told, codes=task.codes, prompt_len=last))
    assert decoder.written == prior.config.context_len - 10
    for kept, wanted in zip(seen(decoder.draft, last), seen(alone, last), strict=True):
        assert torch.equal(kept, wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook_size": 78}, "the level 0 prior's codebook_size is 77, not 78 as the draft's"),
        ({"context_len": 104}, "context_len is 96, not 104"),
        ({"num_rows": 4}, "num_rows is 8, not 4"),
        ({"level": 1}, "level is 0, not 1"),
    ],
)
def test_priors_of_other_codes_or_windows_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check_drafts([make_prior().config], [make_prior(**changes).config])


def test_tasks_that_do_not_belong_together_are_refused():
    prior = make_prior()
    target, draft = NativeDecoder(prior, 2), NativeDecoder(prior, 2)
    one, other = make_task(prior), make_task(prior)
    for decoder, task in zip((target, draft), (one, other)):
        decoder.begin(task)
    with pytest.raises(ValueError, match="drafts are in the same codes"):
        target.speculate(draft, [0], 4, 4, 9, 1)
    draft.begin(one)
    with pytest.raises(ValueError, match="drafts of 0 codes"):
        target.speculate(draft, [0], 4, 0, 9, 1)
    with pytest.raises(ValueError, match="from 2 positions, of 1 items"):
        target.speculate(draft, [0, 0], 4, 4, 9, 1)
    for positions, stop in (([-1], 4), ([0], 97), ([97], 4)):
        with pytest.raises(ValueError, match="of a window of 96"):
            target.speculate(draft, positions, stop, 4, 9, 1)


def changed(folder, other):
    """A copy of a model that draws other codes here and there."""
    shutil.copytree(folder, other)
    for path in other.glob("prior_*"):
        tensors = load_file(path)
        save_file({name: tensor + 0.02 * torch.randn_like(tensor) for name, tensor in tensors.items()}, path)
    return other


@pytest.mark.usefixtures("always_drafts")
@pytest.mark.parametrize("kind", ["none", *top_priors()])
def test_requests_give_the_same_with_drafts(kind, tiny_model, tiny_config, tmp_path, decoders):
    labelled = kind != "none"
    folder = write_model(tmp_path / kind, kind, tiny_config) if labelled else tiny_model
    draft = changed(folder, tmp_path / "draft")
    params = dataclasses.replace(PARAMS, num_samples=1, labels=PARAMS.labels if labelled else None)
    if kind == "labels":
        params = dataclasses.replace(params, labels=dataclasses.replace(PARAMS.labels, lyrics=""))
    for backend in ("native", "native-int8"):
        plain = Jukebox.from_pretrained(folder, backend=backend)
        expected = plain.sample(params)
        jukebox = Jukebox.from_pretrained(folder, backend=backend, draft=draft)
        assert_same(jukebox.sample(params), expected)
        assert_same(jukebox.sample(params, order="time"), expected)
        # As large models are sampled: one window after another.
        jukebox._keeps_priors = jukebox.draft._keeps_priors = False
        assert_same(jukebox.sample(params), expected)
        assert list(jukebox._priors) == list(jukebox.draft._priors) == [0]
        assert_same(stopped_and_resumed(jukebox, params, tmp_path / backend, 30)[0], expected)
        before = sum(decoder.written for decoder in decoders)
        resumed, _ = stopped_and_resumed(plain, params, tmp_path / f"{backend}-later", 30, draft)
        assert_same(resumed, expected)
        assert sum(decoder.written for decoder in decoders) > before
    checked = sum(decoder.written for decoder in decoders)
    assert 0.2 < sum(decoder.right for decoder in decoders) / checked < 0.99


@pytest.mark.usefixtures("always_drafts")
def test_several_samples_and_a_single_one_are_the_same_with_drafts(tiny_model, tmp_path, decoders):
    params = SamplingParams(PARAMS.seconds, seed=2, num_samples=3)
    jukebox = Jukebox.from_pretrained(tiny_model, backend="native", draft=changed(tiny_model, tmp_path / "draft"))
    expected = Jukebox.from_pretrained(tiny_model, backend="native").sample(params)
    for batch_size in (1, 2, 3):
        before = sum(decoder.written for decoder in decoders)
        assert_same(jukebox.sample(dataclasses.replace(params, batch_size=batch_size)), expected)
        assert sum(decoder.written for decoder in decoders) > before


@pytest.mark.usefixtures("always_drafts")
def test_a_student_of_the_demo_drafts_for_its_teacher(decoders):
    teacher = Jukebox.from_pretrained("demo-72", backend="native")
    params = SamplingParams(0.5, seed=3, level=1)
    drafted = Jukebox.from_pretrained("demo-72", backend="native", draft="demo").sample(params)
    assert_same(drafted, teacher.sample(params))
    # It keeps its teacher's conditioner, which is asked once.
    assert decoders and all(decoder.same_conditions for decoder in decoders)
    assert sum(decoder.right for decoder in decoders) > 0.7 * sum(decoder.written for decoder in decoders)


def test_a_draft_that_cannot_be_used_is_refused(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="drafts are for native and Triton decoders, not for eager: choose another"):
        Jukebox.from_pretrained(tiny_model, backend="eager", draft=tiny_model)
    with pytest.raises(ValueError, match=r"cannot draft for .*: its codes are those of another VQ-VAE"):
        Jukebox.from_pretrained(tiny_model, backend="native", draft="demo")
    with pytest.raises(checkpoint.CheckpointError):
        Jukebox.from_pretrained(tiny_model, backend="native", draft=tmp_path / "none")


@pytest.mark.usefixtures("always_drafts")
def test_a_draft_of_another_width_has_conditions_of_its_own(tiny_model, tiny_config, randomize, tmp_path):
    draft = tmp_path / "draft"
    shutil.copytree(tiny_model, draft)
    priors = tuple(dataclasses.replace(prior, width=24, heads=1) for prior in tiny_config.priors)
    checkpoint.save_config(draft, dataclasses.replace(tiny_config, priors=priors))
    for prior in priors:
        checkpoint.save_network(draft / checkpoint.prior_file(prior.level), randomize(Prior(prior)), torch.float32)
    params = SamplingParams(PARAMS.seconds, seed=2)
    drafted = Jukebox.from_pretrained(tiny_model, backend="native", draft=draft).sample(params)
    assert_same(drafted, Jukebox.from_pretrained(tiny_model, backend="native").sample(params))


def test_what_a_draft_lacks_is_said_before_anything_is_sampled(tiny_model, tmp_path):
    draft = changed(tiny_model, tmp_path / "draft")
    (draft / "prior_0.safetensors").unlink()
    jukebox = Jukebox.from_pretrained(tiny_model, backend="native", draft=draft)
    with pytest.raises(checkpoint.CheckpointError, match=r"prior_0\.safetensors does not exist"):
        jukebox.sample(SamplingParams(0.1), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    jukebox.sample(SamplingParams(0.05, level=1))


def test_drafts_that_read_other_lyrics_are_refused():
    prior = top_priors()["encoder"]
    encoder = dataclasses.replace(prior.lyrics.encoder, codebook_size=90)
    other = dataclasses.replace(prior, lyrics=dataclasses.replace(prior.lyrics, vocabulary=90, encoder=encoder))
    for target, draft in ((top_priors()["labels"], prior), (prior, other)):
        with pytest.raises(ValueError, match="read other lyrics"):
            check_drafts([target], [draft])
    check_drafts([prior], [prior])
    # It may read none.
    check_drafts([prior], [top_priors()["labels"]])


def test_drafts_on_the_command_line(run_cli, tiny_model, tmp_path):
    draft = changed(tiny_model, tmp_path / "draft")
    assert run_cli("sample", "a.wav", "--seconds", 0.08, "--backend", "native")[0] == 0
    code, told, _ = run_cli("sample", "b.wav", "--seconds", 0.08, "--backend", "native", "--draft", draft)
    assert code == 0 and f"native on cpu in float32, drafts by {draft}" in told
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    assert run_cli("resume", "b.run", "--overwrite", "--draft", draft)[0] == 0
    for command in (("sample", "e.wav"), ("resume", "b.run", "--overwrite")):
        for name in ("nothing", ""):
            code, _, err = run_cli(*command, "--draft", name)
            assert code and f"no model {name!r}" in err
    several = ("--seconds", 0.05, "--backend", "native", "--draft", draft, "--samples")
    assert f", drafts by {draft}" in run_cli("sample", "c.wav", *several, 8)[1]
    assert f"; {draft} drafts for 8 pieces at most" in run_cli("sample", "d.wav", *several, 9)[1]


def test_weights_of_conditions_tell_whether_they_are_the_same(tiny_model):
    prior = checkpoint.load_prior(tiny_model, 0, torch.device("cpu"), torch.float32)
    same, other = nearly(prior, 0.0), nearly(prior, 0.0)
    other.conditioner.embedding.data[3, 4] += 1
    for draft, expected in ((same, True), (other, False)):
        decoder = SpeculativeDecoder(NativeDecoder(prior, 1), NativeDecoder(draft, 1))
        assert decoder.same_conditions is expected


def test_a_twin_has_caches_and_trials_of_its_own():
    prior = make_prior()
    decoder = SpeculativeDecoder(NativeDecoder(prior, 1), NativeDecoder(nearly(prior, 0.02), 1))
    first, second = decoder.twin(1), decoder.twin(1)
    tasks = [make_task(prior, seed=seed) for seed in (1, 2)]
    for twin, task in zip((first, second), tasks):
        twin.begin(task)
    for start in range(0, 96, 12):
        for twin in (first, second):
            twin.run(start, start + 12)
    for task in tasks:
        assert torch.equal(task.codes, decode(NativeDecoder(prior, 1), make_task(prior, seed=task.seed)))
    assert first.lengths is not second.lengths
