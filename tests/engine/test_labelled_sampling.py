"""Sampling with artists, genres and lyrics, end to end on tiny random models, against a sampler without cache."""

import dataclasses
import shutil
from functools import partial

import pytest
import torch
from fastjukebox.engine import Jukebox, Labels, SamplingParams, checkpoint
from fastjukebox.engine.labels import LevelLabels, window_lyrics
from fastjukebox.engine.runs import RunError
from fastjukebox.kernels import native_library
from labelled_models import LABELS, PARAMS, RATE, TEXT, UNITS, top_priors, write_model
from reference_labels import told
from reference_labels import window_lyrics as expected_lyrics
from reference_sampler import reference_codes
from resumed import assert_same, stopped_and_resumed
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module", params=top_priors())
def folder(request, tiny_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / request.param
    return write_model(folder, request.param, tiny_config)


@pytest.fixture(scope="module")
def jukebox(folder):
    return Jukebox.from_pretrained(folder, backend="eager")


@pytest.fixture
def params(jukebox):
    sung = jukebox.config.priors[2].lyrics is not None
    return PARAMS if sung else dataclasses.replace(PARAMS, labels=dataclasses.replace(LABELS, lyrics=""))


def alphabet(plus):
    letters = "abcdefghijklmnopqrstuvwxyz"
    return letters.upper() + letters + "0123456789.,:;!?-" + plus + "'\"()[] \t\n"


def test_every_code_is_the_one_that_a_sampler_without_cache_draws(jukebox, params):
    top = jukebox.config.priors[2]
    before = top.lyric_len > 0
    ids = [(3, (2, 4)), (3, (2, 4)), (6, (8,)) if before else (3, (2, 4))]
    plain = TEXT.replace("ö", "o").replace("ß", "ss")
    characters = [1 + alphabet("" if before else "+").index(c) for c in plain]

    def window(prior, start):
        level = prior.config.level
        artist, genres = ids[level]
        labels = {"artist": artist, "genres": genres, "lyrics": characters, "song": 8820}
        return told(prior, start, rate=RATE, unit=UNITS[level], **labels)

    result = jukebox.sample(params)
    known = [torch.zeros(2, 0, dtype=torch.long)] * 3
    codes, ties = reference_codes(jukebox, params, known, result.codes, window)
    assert all(torch.equal(*pair) for pair in zip(codes, result.codes, strict=True))
    assert ties <= 1
    assert all(len(codes.unique()) > 15 for codes in result.codes)


@pytest.mark.skipif(bool(native_library.missing()), reason="needs the native decoder")
def test_other_decoders_orders_and_batches_give_the_same(folder, jukebox, params):
    expected = jukebox.sample(params)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            native = Jukebox.from_pretrained(folder, backend="native")
            assert_same(native.sample(params), expected)
            assert_same(native.sample(params, order="time"), expected)
            assert_same(native.sample(dataclasses.replace(params, batch_size=1)), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(bool(native_library.missing()), reason="needs the native decoder")
@pytest.mark.parametrize("backend", ["native", "native-int8"])
def test_weights_of_fp16_values_give_the_codes_of_fp32(folder, params, tmp_path, backend):
    shutil.copytree(folder, tmp_path / "half")
    for path in (tmp_path / "half").glob("prior_*"):
        save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    jukeboxes = [Jukebox.from_pretrained(tmp_path / "half", "cpu", d, backend) for d in ("float16", "float32")]
    assert [jukebox.prior(2).dtype for jukebox in jukeboxes] == [torch.float16, torch.float32]
    assert_same(*(jukebox.sample(params) for jukebox in jukeboxes))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_callers_default_dtype_changes_nothing(jukebox, params, dtype):
    expected = jukebox.sample(params)
    torch.set_default_dtype(dtype)
    try:
        assert_same(jukebox.sample(params), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_stopped_run_goes_on_to_the_same(jukebox, params, tmp_path):
    expected = jukebox.sample(params)
    assert_same(stopped_and_resumed(jukebox, params, tmp_path / "run", 70)[0], expected)


def test_a_run_whose_model_has_other_names_now_is_refused(folder, params, tmp_path):
    jukebox = Jukebox.from_pretrained(folder, backend="eager")
    jukebox.sample(params, run_dir=tmp_path / "run")
    path = folder / checkpoint.names_file(2)
    text = path.read_text()
    try:
        path.write_text(text.replace('"nobody"', '"somebody else"'))
        with pytest.raises(RunError, match="other weights"):
            Jukebox.resume(tmp_path / "run")
    finally:
        path.write_text(text)


def test_what_is_not_told_is_unknown_and_as_long_as_the_result(jukebox):
    untold = dataclasses.replace(PARAMS, labels=None)
    # The shortest song that the model knows is longer than the result.
    told_so = dataclasses.replace(PARAMS, labels=Labels(artist=0, genre=0, lyrics="", song_seconds=0.1))
    assert_same(jukebox.sample(untold), jukebox.sample(told_so))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"artist": "sum body"}, r"level 0 artist 'sum body' is not one that the model knows; close to it: some_body"),
        (
            {"genre": "slow tango"},
            r"level 0 genre 'slow tango' \(tango\) is not one that the model knows; 0 stands for any",
        ),
        ({"artist": 7}, r"level 0 artist 7 does not exist: ids are 0 \(unknown\) to 6"),
        ({"artist": (0, 0, 99)}, r"level 2 artist 99 does not exist"),
        ({"artist": (0, 0)}, r"artist has 2 values, the model has 3 levels"),
        ({"genre": ((1, 2, 3, 4), 0, 0)}, r"level 0 takes at most 3 genres, not 4"),
        ({"song_seconds": 0.05}, r"a song of 0.05 s cannot begin with"),
        ({"song_seconds": 0.09}, r"this model knows songs of 0.1 to less than 0.25 s, not of 0.09 s"),
        ({"song_seconds": 0.25}, r"this model knows songs of 0.1 to less than 0.25 s, not of 0.25 s"),
    ],
)
def test_labels_that_the_model_does_not_know_are_refused(jukebox, changes, message):
    labels = Labels(**{"artist": "nobody", "genre": "waltz", **changes})
    with pytest.raises(ValueError, match=message):
        jukebox.sample(dataclasses.replace(PARAMS, labels=labels))


def test_only_levels_that_are_sampled_are_told(jukebox):
    # No song of 4 ms is known at the top, and no artist 8 below it.
    top, told = torch.randint(37, (1, 24)), Labels(artist=(6, 6, 99), song_seconds=0.004)
    given = dataclasses.replace(PARAMS, seconds=0.004, num_samples=1, labels=told)
    jukebox.sample(dataclasses.replace(given, level=1), [None, None, top])
    jukebox.sample(dataclasses.replace(given, level=2, labels=Labels(artist=(99, 99, 6))))
    with pytest.raises(ValueError, match="level 2 artist 99"):
        jukebox.sample(dataclasses.replace(given, labels=Labels(artist=(6, 6, 99))))


def test_a_name_needs_a_table(folder, jukebox, params):
    without = Jukebox.from_pretrained(folder, backend="eager")
    without.names = [None] * 3
    with pytest.raises(ValueError, match=r"'Some Body'.*holds no names, so give ids, or convert it with --names"):
        without.sample(params)
    ids = (3, 3, 6) if jukebox.config.priors[2].lyric_len else 3
    genres = ((2, 4), (2, 4), 8 if jukebox.config.priors[2].lyric_len else (2, 4))
    labels = dataclasses.replace(params.labels, artist=ids, genre=genres)
    assert_same(without.sample(dataclasses.replace(params, labels=labels)), jukebox.sample(params))


def test_labels_are_for_models_that_take_them(tiny_model, jukebox):
    with pytest.raises(ValueError, match="knows no artists, genres or lyrics"):
        Jukebox.from_pretrained(tiny_model, backend="eager").sample(PARAMS)
    if not jukebox.config.priors[2].lyrics:
        with pytest.raises(ValueError, match="takes no lyrics"):
            jukebox.sample(dataclasses.replace(PARAMS, labels=Labels(lyrics="la")))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"artist": -1}, "artist must be"),
        ({"artist": True}, "artist must be"),
        ({"artist": ((1, 2), 3, 4)}, "artist must be"),
        ({"genre": ("a", ("b", "c"))}, "genre must be"),
        ({"genre": (1, ())}, "genre must be"),
        ({"lyrics": None}, "lyrics must be text"),
        ({"song_seconds": 0}, "song_seconds must be"),
        ({"song_seconds": float("nan")}, "song_seconds must be"),
        ({"song_seconds": "3"}, "song_seconds must be"),
        ({"song_seconds": True}, "song_seconds must be"),
        ({"song_seconds": float("inf")}, "song_seconds must be"),
    ],
)
def test_labels_of_another_kind_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Labels(**values)
    with pytest.raises(ValueError, match="labels must be Labels"):
        SamplingParams(labels=values)


def test_reference_and_engine_take_the_same_characters(folder):
    """Over songs and places: the rule is rounded down, so a place must not depend on how it was computed."""
    config = checkpoint.load_config(folder).priors[2]
    if not config.lyrics:
        return
    generator = torch.Generator().manual_seed(1)
    draw = partial(torch.randint, size=(), generator=generator)
    for _ in range(500):
        tokens = tuple(range(int(draw(1, 3000))))
        song, samples = int(draw(10**5, 10**7)), int(draw(1, 10**5))
        offset = int(draw(0, song))
        labels = LevelLabels(0, (), tokens, song)
        found = window_lyrics(labels, config, offset, samples)
        assert list(found) == expected_lyrics(tokens, config.lyrics.length, song, offset, samples)
