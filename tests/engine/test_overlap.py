"""Windows of all levels at the same time: the codes of one after another, and no thread outlives its request."""

import dataclasses
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from fastjukebox.engine import Jukebox, SamplingParams, overlap, runs
from fastjukebox.engine.native_decoder import NativeDecoder
from fastjukebox.engine.runs import Run, RunError
from fastjukebox.kernels import native_library
from native_cases import decode, make_prior, make_task
from resumed import assert_same, stopped_and_resumed

pytestmark = pytest.mark.skipif(
    native_library.missing() is not None, reason=f"native decoder: {native_library.missing()}"
)
PARAMS = SamplingParams(seconds=27 * 128 / 44100, seed=5, num_samples=3, batch_size=2, hop_fraction=(0.75, 0.75, 0.5))


@pytest.fixture
def jukebox(tiny_model):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield Jukebox.from_pretrained(tiny_model, backend="native")
    assert torch.get_num_threads() == 2
    assert not [thread for thread in threading.enumerate() if thread.name == "sampling"]
    torch.set_num_threads(before)


def one_after_another(jukebox, *args, **options):
    torch.set_num_threads(1)
    try:
        return jukebox.sample(*args, **options)
    finally:
        torch.set_num_threads(2)


@pytest.mark.parametrize("threads", [2, 3, 5, 8])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"level": 1},
        {"hop_fraction": 1.0},
        {"num_samples": 1, "top_p": 0.8},
        {"seconds": 0.01},
        {"num_samples": 11, "batch_size": 16},
    ],
)
def test_the_codes_are_those_of_one_window_after_another(jukebox, changes, threads, monkeypatch):
    params = dataclasses.replace(PARAMS, **changes)
    expected = one_after_another(jukebox, params)
    used = []
    monkeypatch.setattr(overlap, "run", lambda *args, run=overlap.run: (used.append(1), run(*args))[1])
    torch.set_num_threads(threads)
    assert_same(jukebox.sample(params), expected)
    assert used
    torch.set_num_threads(2)


@pytest.mark.parametrize(
    ("threads", "samples", "batch_size", "groups", "size", "team"),
    [
        (2, 12, 8, 1, 8, 1),
        (3, 2, 8, 1, 2, 1),
        (4, 1, 8, 1, 1, 2),
        (6, 5, 8, 3, 2, 1),
        (7, 40, 16, 3, 6, 1),
        (8, 40, 2, 4, 2, 1),
        (9, 30, 8, 4, 4, 1),
        (12, 2, 8, 2, 1, 3),
    ],
)
def test_samples_are_divided_over_many_cores(jukebox, threads, samples, batch_size, groups, size, team, monkeypatch):
    twins, crews, twin, crew = [], [], NativeDecoder.twin, overlap.Crew

    def counted(decoder, team):
        twins.append((len(decoder.cache[0].keys), team))
        return twin(decoder, team)

    monkeypatch.setattr(NativeDecoder, "twin", counted)
    monkeypatch.setattr(overlap, "Crew", lambda count, *args: (crews.append(count), crew(count, *args))[1])
    torch.set_num_threads(threads)
    jukebox.sample(dataclasses.replace(PARAMS, num_samples=samples, batch_size=batch_size, level=1))
    torch.set_num_threads(2)
    # Two decoders of each of two levels and each group.
    assert twins == [(size, team)] * 4 * groups
    assert crews == [threads // team]


def test_prompts_are_taken_in_part_by_part_and_catch_up(jukebox, monkeypatch):
    expected, parts = one_after_another(jukebox, PARAMS), []
    extend = NativeDecoder.extend

    def slow(decoder, start, stop):
        parts.append((decoder, start, stop))
        time.sleep(0.002)
        extend(decoder, start, stop)

    monkeypatch.setattr(NativeDecoder, "extend", slow)
    monkeypatch.setattr(overlap, "PROMPT_PART", 2)
    monkeypatch.setattr(overlap, "LONGEST_PROMPT_PART", 5)
    # Where a step takes longer than a part of a window may, it is one.
    monkeypatch.setattr(overlap, "PART_SECONDS", 0.0)
    run = NativeDecoder.run
    monkeypatch.setattr(NativeDecoder, "run", lambda self, start, stop: run(self, range(start, stop)[0], stop))
    assert_same(jukebox.sample(PARAMS), expected)
    assert {stop - start for _, start, stop in parts} >= {2, 4, 5}
    reached = {}
    for decoder, start, stop in parts:
        assert start == (reached.get(decoder, 0) if start else 0)
        reached[decoder] = stop


def test_from_codes_of_any_length(jukebox):
    torch.manual_seed(0)
    for lengths in ((0, 40, 10), (430, 0, 0), (100, 70, 27), (0, 0, 26)):
        codes = [torch.randint(37, (3, length)) for length in lengths]
        assert_same(jukebox.sample(PARAMS, codes), one_after_another(jukebox, PARAMS, codes))


def test_every_code_is_reported_once_from_the_callers_thread(jukebox):
    seen = []
    result = jukebox.sample(PARAMS, progress=lambda progress: seen.append((progress, threading.current_thread())))
    assert seen[-1][0].done == seen[-1][0].total == sum(codes.numel() for codes in result.codes)
    assert {thread for _, thread in seen} == {threading.current_thread()}


@pytest.mark.parametrize("part", ["begin", "extend", "run"])
def test_what_goes_wrong_in_a_thread_reaches_the_caller(jukebox, part, monkeypatch):
    calls = []

    def broken(*args):
        calls.append(args)
        if len(calls) > 3:
            raise MemoryError("no room")
        return before(*args)

    before = getattr(NativeDecoder, part)
    monkeypatch.setattr(NativeDecoder, part, broken)
    with pytest.raises(MemoryError, match="no room"):
        jukebox.sample(PARAMS)


def test_no_thread_goes_on_once_a_run_cannot_be_saved(jukebox, tmp_path, monkeypatch):
    saves, save = [], Run.save

    def full(run, codes):
        saves.append(1)
        if len(saves) > 3:
            raise RunError("disk full")
        save(run, codes)

    monkeypatch.setattr(Run, "save", full)
    monkeypatch.setattr(runs, "SAVES_APART", 0)
    with pytest.raises(RunError) as raised:
        jukebox.sample(PARAMS, run_dir=tmp_path / "run")
    # While the error and its frames are still there.
    assert raised.value and not [thread for thread in threading.enumerate() if thread.name == "sampling"]
    assert torch.get_num_threads() == 2


def test_stopped_anywhere_and_resumed_equals_undisturbed(jukebox, tmp_path):
    expected = jukebox.sample(PARAMS)
    for stop_at in (1, 300, 900, 1600):
        assert_same(stopped_and_resumed(jukebox, PARAMS, tmp_path / str(stop_at), stop_at)[0], expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_callers_settings_of_pytorch_change_nothing(tiny_model, jukebox, threads):
    """Default dtypes and inference mode belong to the caller, who may sample amid other work."""
    params = dataclasses.replace(PARAMS, num_samples=1)
    expected = jukebox.sample(params)
    torch.set_num_threads(threads)
    try:
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            torch.set_default_dtype(dtype)
            assert_same(Jukebox.from_pretrained(tiny_model, backend="native").sample(params), expected)
        torch.set_default_dtype(torch.float32)
        with torch.inference_mode():
            inside = Jukebox.from_pretrained(tiny_model, backend="native")
            assert_same(inside.sample(params), expected)
            assert torch.equal(torch.cat(list(inside.stream(params)), dim=1), expected.audio)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(2)


def test_a_stream_that_nobody_wants_any_more_ends(tiny_model, jukebox):
    chunks = jukebox.stream(dataclasses.replace(PARAMS, num_samples=1, seconds=0.5))
    next(chunks)
    chunks.close()


def test_a_program_that_ends_with_a_stream_under_way_ends_well(tiny_model):
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); import conftest, torch\n"
        "from fastjukebox.engine import Jukebox, SamplingParams\n"
        f"torch.set_num_threads(2); jukebox = Jukebox.from_pretrained({str(tiny_model)!r}, backend='native')\n"
        "chunks = jukebox.stream(SamplingParams(seconds=20)); next(chunks)"
    )
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")


def test_interrupted_again_while_threads_end_it_still_waits_for_them(jukebox, monkeypatch):
    join, interrupts = threading.Thread.join, []

    def interrupted(thread, *timeout):
        if thread.name == "sampling" and len(interrupts) < 3:
            interrupts.append(thread)
            raise KeyboardInterrupt
        join(thread, *timeout)

    monkeypatch.setattr(threading.Thread, "join", interrupted)

    def interrupt(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jukebox.sample(dataclasses.replace(PARAMS, seconds=2), progress=interrupt)
    assert len(interrupts) == 3


def test_interrupted_while_it_tells_threads_to_end_it_tells_them_again(crew, monkeypatch):
    one, notify_all = crew(2), threading.Condition.notify_all
    one.start()

    def interrupted(condition):
        monkeypatch.setattr(threading.Condition, "notify_all", notify_all)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Condition, "notify_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        one.end()
    assert not any(worker.is_alive() for worker in one.workers)


def test_other_threads_keep_their_number(jukebox):
    """A new thread begins with the number that was set last, in whatever thread."""
    found = []

    def look(progress=None):
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()

    jukebox.sample(PARAMS, progress=look)
    chunks = jukebox.stream(dataclasses.replace(PARAMS, num_samples=1, seconds=0.5))
    next(chunks)
    assert torch.get_num_threads() == 2
    look()
    # Another thread takes the rest.
    thread = threading.Thread(target=list, args=(chunks,))
    thread.start()
    thread.join()
    look()
    assert len(found) > 10 and set(found) == {2}


@pytest.fixture
def crew():
    """Makes crews of so many threads, whose failures are in `failures`."""
    failures, crews = [], []

    def make(count):
        crews.append(overlap.Crew(count, torch.get_num_threads(), [[0]], failures.append))
        crews[-1].failures = failures
        return crews[-1]

    yield make
    for one in crews:
        one.end()


def test_of_what_can_be_done_the_least_rank_goes_first(crew):
    one, order, done = crew(1), [], threading.Event()

    def chain(rank, needed, fills=0):
        yield overlap.Need(rank, 0, 0, needed)
        order.append(rank)
        one.filled[0][0] += fills
        # Its next piece is less urgent than all others.
        yield overlap.Need((9, *rank[1:]), 0, 0, needed)
        order.append((9, *rank[1:]))
        if len(order) == 8:
            done.set()

    one.add(chain((0, 0, 2), 2))
    one.add(chain((1, 0, 0), 1, fills=1))
    one.add(chain((2, 0, 1), 0, fills=1))
    one.add(chain((1, 0, 3), 0))
    one.start()
    assert done.wait(10)
    assert order == [(1, 0, 3), (2, 0, 1), (1, 0, 0), (0, 0, 2), (9, 0, 0), (9, 0, 1), (9, 0, 2), (9, 0, 3)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_crew_computes_as_many_pieces_at_once_as_it_has_threads(crew, count):
    few, at_once, most, left = crew(count), [], [], threading.Semaphore(0)

    def chain(number):
        for piece in range(4):
            # A chain of two waits for its partner.
            yield overlap.Need((0, piece, number), 0, 0, piece if number % 2 else 0)
            at_once.append(number)
            most.append(len(at_once))
            time.sleep(0.005)
            few.filled[0][0] = max(few.filled[0][0], piece + 1)
            at_once.remove(number)
        left.release()

    few.start()
    for number in range(6):
        few.add(chain(number))
    assert few.compute((0, 0, 0), torch.get_num_threads) == 1
    assert all(left.acquire(timeout=10) for _ in range(6))
    assert max(most) == count and not few.failures


def test_what_goes_wrong_in_a_crew_is_told(crew):
    one = crew(1)
    one.start()
    with pytest.raises(ZeroDivisionError):
        one.compute((0, 0, 0), lambda: 1 // 0)
    assert one.compute((0, 0, 0), lambda: 3) == 3 and not one.failures

    def chain():
        yield overlap.Need((0, 0, 0), 0, 0, 0)
        raise RuntimeError("broken")

    one.add(chain())
    # It goes on with what there is.
    assert one.compute((1, 0, 0), lambda: 4) == 4
    assert [str(error) for error in one.failures] == ["broken"]


def test_a_twin_has_the_same_weights_and_a_cache_of_its_own():
    prior = make_prior()
    first = NativeDecoder(prior, 2)
    twin = first.twin(1)
    task, other = make_task(prior, 2, 20, cond=True), make_task(prior, 2, 33, cond=True, seed=8)
    first.prefill(task)
    decode(twin, other)
    first.run(20, task.codes.shape[1])
    assert twin.model._weights is first.model._weights
    for decoder, found, prompt, seed in ((first, task, 20, 7), (twin, other, 33, 8)):
        again = make_task(prior, 2, prompt, cond=True, seed=seed)
        assert torch.equal(found.codes, decode(NativeDecoder(prior, 2), again)), decoder


def test_threads_that_cannot_begin_are_an_error_and_no_wait(jukebox, monkeypatch):
    def cannot(threads):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(overlap, "alone", cannot)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        jukebox.sample(PARAMS)


def test_a_crew_that_is_ended_by_one_of_its_threads_ends():
    failures = []
    crew = overlap.Crew(2, torch.get_num_threads(), [[0]], failures.append)
    crew.start()

    def collected():
        with crew.lock:
            crew.end()

    crew.compute((0, 0, 0), collected)
    for worker in crew.workers:
        worker.join(10)
    assert not failures and not any(worker.is_alive() for worker in crew.workers)
