"""Songs cut into segments that are sampled side by side: each is a song of its own below the top level."""

import dataclasses
from pathlib import Path

import pytest
import torch
from fastjukebox.engine import Jukebox, SamplingParams, runs, segments
from fastjukebox.engine.runs import Run, RunError
from fastjukebox.engine.segments import Segments
from fastjukebox.kernels import native_library
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_models import LABELS, UNITS, write_model
from labelled_models import PARAMS as TOLD_PARAMS
from reference_labels import told
from reference_sampler import nothing_told, reference_codes
from resumed import assert_same, stopped_and_resumed

RATE = 44100
# Of 27 top codes: three segments of 9 at level 1, four of 7 at level 0, of which the last one is moved back by one.
PARAMS = SamplingParams(
    seconds=27 * 128 / RATE, seed=5, num_samples=2, first_item=1, hop_fraction=(0.75, 0.75, 0.5), segments=4
)
STARTS = {1: (0, 36, 72), 0: (0, 112, 224, 320)}
LENGTHS = {1: 36, 0: 112}
needs_native = pytest.mark.skipif(bool(native_library.missing()), reason="needs the native decoder")


@pytest.fixture(scope="module")
def jukebox(tiny_model):
    return Jukebox.from_pretrained(tiny_model, backend="eager")


@pytest.fixture(scope="module")
def whole(jukebox):
    return jukebox.sample(PARAMS)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 90), st.sampled_from([1, 4, 16]), st.integers(1, 3))
def test_segments_cover_a_song_and_are_as_long_as_a_window(units, most, window_len, unit, items):
    total = units * unit
    found = Segments.of(total, most, window_len, unit)
    assert 1 <= found.count <= most
    assert found.count == 1 or found.length >= window_len
    assert found.starts[0] == 0
    assert found.starts[-1] + found.length == total
    assert all(start % unit == 0 for start in found.starts)
    assert all(0 < b - a <= found.length for a, b in zip(found.starts, found.starts[1:]))
    # As many as there can be of that length.
    assert found.count == -(-total // found.length)
    codes = torch.randint(99, (items, total))
    places = [found.place(row) for row in range(items * found.count)]
    rows = torch.stack([codes[item, start : start + found.length] for item, start in places])
    assert torch.equal(found.join(rows), codes)
    noise = {found.noise_item(row, 2**31) for row in range(items * found.count)}
    assert len(noise) == items * found.count
    assert [found.noise_item(item * found.count, 2**31) for item in range(items)] == [2**31 + i for i in range(items)]


def test_what_two_segments_have_is_the_first_ones():
    cut = Segments((0, 4, 6), 4, 10)
    rows = torch.arange(3)[:, None].expand(3, 4)
    assert cut.join(rows).tolist() == [[0] * 4 + [1] * 4 + [2] * 2]


def assert_drawn_as_songs_of_their_own(jukebox, params, result, rows, window=nothing_told):
    """rows: per level those of all segments, item by item."""
    ties, nothing = 0, torch.zeros(1, 0, dtype=torch.long)
    for level, starts in STARTS.items():
        length = LENGTHS[level]
        for row, codes in enumerate(rows[level]):
            item, number = divmod(row, len(starts))
            start = starts[number]
            known = [nothing, nothing, result.codes[2][item : item + 1, : length // (4 if level else 16)]]
            known[level + 1] = result.codes[level + 1][item : item + 1, start // 4 : (start + length) // 4]
            found = [*known]
            found[level] = codes[None]
            numbers = torch.tensor([(params.first_item + item + number * 0x9E3779B1) % 2**32])
            drawn, more = reference_codes(
                jukebox, params, known, found, lambda prior, at, first=start: window(prior, first + at), numbers
            )
            assert torch.equal(drawn[level], codes[None]), (level, row)
            ties += more
    assert ties <= 1


@pytest.fixture
def rows(monkeypatch):
    """Per level, what was joined last."""
    found, join = {}, Segments.join

    def joined(cut, rows):
        if cut.count > 1:
            found[0 if cut.total == 27 * 16 else 1] = rows.clone()
        return join(cut, rows)

    monkeypatch.setattr(segments.Segments, "join", joined)
    return found


def test_every_code_is_the_one_that_a_sampler_without_cache_draws(jukebox, rows):
    result = jukebox.sample(PARAMS)
    assert [codes.shape for codes in result.codes] == [(2, 27 * 16), (2, 27 * 4), (2, 27)]
    assert {level: tuple(found.shape) for level, found in rows.items()} == {1: (6, 36), 0: (8, 112)}
    assert_drawn_as_songs_of_their_own(jukebox, PARAMS, result, rows)
    for level in (0, 1):
        # No segment has another one's noise.
        assert len({tuple(row[:30].tolist()) for row in rows[level]}) == len(rows[level])


@pytest.mark.parametrize("kind", ["labels", "before"])
def test_segments_are_told_where_in_the_song_they_are(kind, tiny_config, tmp_path, rows):
    jukebox = Jukebox.from_pretrained(write_model(tmp_path / kind, kind, tiny_config), backend="eager")
    labels = dataclasses.replace(LABELS, lyrics="")
    params = dataclasses.replace(TOLD_PARAMS, first_item=1, segments=4, labels=labels)

    def window(prior, start):
        named = {"artist": 3, "genres": (2, 4), "lyrics": [], "song": 8820}
        return told(prior, start, rate=RATE, unit=UNITS[prior.config.level], **named)

    result = jukebox.sample(params)
    assert_drawn_as_songs_of_their_own(jukebox, params, result, rows, window)


def test_the_top_level_is_one_piece(jukebox, whole):
    assert torch.equal(whole.codes[2], jukebox.sample(dataclasses.replace(PARAMS, segments=1)).codes[2])


@needs_native
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_decoders_orders_batches_and_threads_change_nothing(tiny_model, whole, threads, batch_size):
    before = torch.get_num_threads()
    native, params = (
        Jukebox.from_pretrained(tiny_model, backend="native"),
        dataclasses.replace(PARAMS, batch_size=batch_size),
    )
    try:
        torch.set_num_threads(threads)
        assert_same(native.sample(params), whole)
        assert_same(native.sample(params, order="time"), whole)
        chunks = list(native.stream(params))
        assert torch.equal(torch.cat(chunks, dim=1), whole.audio)
    finally:
        torch.set_num_threads(before)


def test_items_do_not_depend_on_those_beside_them(jukebox, whole):
    one = jukebox.sample(dataclasses.replace(PARAMS, num_samples=1, first_item=2))
    for codes, all_items in zip(one.codes, whole.codes, strict=True):
        assert torch.equal(codes, all_items[1:])


def test_levels_given_whole_are_kept_and_those_below_cut(jukebox, whole):
    preview = jukebox.sample(dataclasses.replace(PARAMS, level=1))
    assert torch.equal(preview.codes[1], whole.codes[1])
    params = dataclasses.replace(PARAMS, seconds=None)
    assert_same(jukebox.upsample([None, *whole.codes[1:]], params), whole)
    assert_same(jukebox.upsample([None, None, whole.codes[2]], params), whole)


def test_a_song_shorter_than_two_windows_is_one_piece(jukebox, caplog):
    # 11 top codes: 44 of level 1, where a window has 32, and 176 of level 0, where it has 48.
    params = SamplingParams(seconds=11 * 128 / RATE, hop_fraction=1.0)
    cut, one = (jukebox.sample(dataclasses.replace(params, segments=n)) for n in (8, 1))
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        f"level {level} is cut into {count}, not 8 segments" for level, count in ((0, 3), (1, 1))
    ]
    assert "a window of 0.0232 s or more" in caplog.text
    assert torch.equal(cut.codes[1], one.codes[1])
    # There are three, the first one as in the whole.
    assert torch.equal(cut.codes[0][:, :48], one.codes[0][:, :48])
    assert not torch.equal(cut.codes[0], one.codes[0])


def test_what_goes_on_from_codes_is_not_cut(jukebox, whole):
    known = [codes[:, : codes.shape[1] // 2] for codes in whole.codes]
    with pytest.raises(
        ValueError, match=r"level 0 codes are given.* cannot be cut into 4 segments: leave the segments out"
    ):
        jukebox.sample(PARAMS, known)
    # Segments of a run that has begun are no items.
    with pytest.raises(ValueError, match="level 1 codes are given"):
        jukebox.sample(PARAMS, [None, torch.zeros(6, 8, dtype=torch.long), None])


def test_killed_after_any_number_of_windows_and_resumed_equals_undisturbed(jukebox, whole, tmp_path, monkeypatch):
    saved, save = [], Run.save
    monkeypatch.setattr(Run, "save", lambda run, codes: (saved.append([c.clone() for c in codes]), save(run, codes))[1])
    monkeypatch.setattr(runs, "SAVES_APART", 0)
    assert_same(jukebox.sample(PARAMS, run_dir=tmp_path / "run"), whole)
    monkeypatch.undo()
    # Two windows at the top, two of each segment at level 1, three at level 0.
    assert len(saved) == 2 + 2 + 3
    assert [tuple(codes.shape) for codes in saved[4]] == [(8, 48), (2, 108), (2, 27)]
    for codes in [[codes[:, :0] for codes in saved[0]], *saved]:
        Run.open(tmp_path / "run").save(codes)
        assert_same(Jukebox.resume(tmp_path / "run"), whole)
    Run.open(tmp_path / "run").save([saved[4][0][:7], *saved[4][1:]])
    with pytest.raises(RunError, match="7 items, the request is for 8"):
        Jukebox.resume(tmp_path / "run")


@needs_native
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("stop_at", [10, 200, 500, 1100])
def test_a_request_that_was_stopped_goes_on(tiny_model, whole, tmp_path, threads, stop_at):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        native = Jukebox.from_pretrained(tiny_model, backend="native")
        result, progress = stopped_and_resumed(native, PARAMS, tmp_path / "run", stop_at)
    finally:
        torch.set_num_threads(before)
    for codes, expected in zip(result.codes, whole.codes, strict=True):
        assert torch.equal(codes, expected)
    assert progress[-1].done == progress[-1].total <= 2 * 27 + 6 * 36 + 8 * 112
    assert progress[-1].eta == pytest.approx(0, abs=1e-6)


def test_on_the_command_line(ok, fails, jukebox):
    song = ("--seconds", PARAMS.seconds, "--seed", 5, "--hop-fraction", "0.75,0.75,0.5")
    ok("sample", "a.wav", *song, "--segments", 3, "--backend", "eager")
    assert Run.open(Path("a.run")).request.params.segments == 3
    codes = Run.open(Path("a.run")).load()
    expected = jukebox.sample(dataclasses.replace(PARAMS, num_samples=1, first_item=0, segments=3))
    assert all(torch.equal(*pair) for pair in zip(codes, expected.codes, strict=True))
    assert "segments must be a whole number from 1" in fails("sample", "b.wav", *song, "--segments", 0)
    assert "leave the segments out" in fails("continue", "a.run", "c.wav", "--seconds", 0.1, "--segments", 4)
