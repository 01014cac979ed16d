"""From a user's words to the numbers that each level is told."""

import dataclasses
import json
import logging
import shutil

import numpy as np
import pytest
from fastjukebox.engine import Jukebox, JukeboxConfig, Labels, checkpoint
from fastjukebox.engine.config import LabelConfig
from fastjukebox.engine.labels import level_labels, lyric_tokens
from labelled_models import NAMES, OTHER_NAMES, top_priors


@pytest.fixture
def config(tiny_config):
    """Upsamplers of one list of names, a top prior of another."""
    upsamplers = (dataclasses.replace(prior, labels=LabelConfig(7, 6, 3)) for prior in tiny_config.priors[:2])
    return JukeboxConfig(tiny_config.vqvae, (*upsamplers, top_priors()["before"]))


def told(config, labels, names=(NAMES, NAMES, OTHER_NAMES), seconds=0.15, sampled=(True,) * 3):
    return level_labels(labels, config, names, seconds, sampled)


def test_a_name_that_some_levels_know_is_an_unknown_one_to_the_others(config, caplog):
    names = (NAMES, NAMES, OTHER_NAMES._replace(artists={"somebody new": 8}))
    with caplog.at_level(logging.WARNING, logger="fastjukebox"):
        found = told(config, Labels("Somebody New", "waltz"), names)
    assert [level.artist for level in found] == [0, 0, 8]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "level 1 artist 'Somebody New' is not one that the model knows" in caplog.text
    assert "is told of an unknown one" in caplog.text
    # Nobody knows it, or the only level that is sampled does not.
    with pytest.raises(ValueError, match="level 0 artist 'Somebody Else'"):
        told(config, Labels("Somebody Else", "waltz"), names)
    with pytest.raises(ValueError, match="level 0 artist 'Somebody New'"):
        told(config, Labels("Somebody New"), names, sampled=(True, False, False))


def test_of_what_is_long_an_error_shows_the_beginning(config):
    with pytest.raises(ValueError, match=r"artist 'x{80}'\.\.\.: the model's folder holds no names"):
        level_labels(Labels("x" * 5000), config, [None] * 3, 0.2, [True] * 3)


def test_a_name_of_digits_is_a_name_first(config):
    names = [table._replace(artists={"112": 5, **table.artists}) for table in (NAMES, NAMES, OTHER_NAMES)]
    assert [level.artist for level in told(config, Labels("112"), names)] == [5, 5, 5]
    assert [level.artist for level in told(config, Labels("3"), names)] == [3, 3, 3]
    assert [level.artist for level in told(config, Labels("3"), (None,) * 3)] == [3, 3, 3]


@pytest.mark.parametrize("name", ["", "   ", "Бэтмен", "东京", "!!"])
def test_a_name_that_no_list_can_write_is_refused(config, name):
    # The original's list has a line without a name.
    names = [table._replace(artists={"": 0, **table.artists}) for table in (NAMES, NAMES, OTHER_NAMES)]
    with pytest.raises(ValueError, match=r"holds no letter or digit|is not one that the model knows"):
        told(config, Labels(name), names, sampled=(True, True, False))


def test_a_name_that_is_offered_can_be_typed(config):
    names = [table._replace(artists={"r_e_m_": 6}) for table in (NAMES, NAMES, OTHER_NAMES)]
    with pytest.raises(ValueError, match="close to it: r_e_m") as error:
        told(config, Labels("REM"), names, sampled=(True, False, False))
    offered = str(error.value).rpartition(": ")[2]
    assert told(config, Labels(offered), names, sampled=(True, False, False))[0].artist == 6


def test_an_id_in_a_list_that_the_model_lacks_is_refused(config):
    names = (NAMES._replace(artists={"a": 7}), NAMES, OTHER_NAMES)
    with pytest.raises(ValueError, match="level 0 artist 7 does not exist"):
        told(config, Labels("a"), names)


def test_lyrics_of_which_nothing_is_left_are_refused(config):
    with pytest.raises(ValueError, match="hold no character that the model knows"):
        told(config, Labels(lyrics="\u200b\U0001f600"))
    assert told(config, Labels(lyrics=" "))[2].lyrics


def test_characters_are_those_of_the_models_alphabet():
    assert lyric_tokens("Aa0.", 80) == (1, 27, 53, 63)
    # The smaller alphabet lacks the plus sign; accents go, an emoji is not sung, other letters are not guessed at.
    assert lyric_tokens("a+b", 79) == lyric_tokens("äb\U0001f600", 79) == (27, 28)
    assert lyric_tokens("+", 80) == (70,)
    assert lyric_tokens("a\u2014b\r\n", 80) == lyric_tokens("a--b\\", 80)
    with pytest.raises(ValueError, match="no alphabet of 90 characters"):
        lyric_tokens("a", 90)


def test_a_song_may_be_as_long_as_the_result(config):
    # The first is rounded to samples before it comes here.
    assert told(config, Labels(song_seconds=0.1111011), seconds=round(0.1111011 * 44100) / 44100)


def test_numpy_numbers_and_lists_are_taken():
    labels = Labels(np.int64(3), [np.int32(1), [2, np.int8(3)], "waltz"], song_seconds=np.float32(0.25))
    assert labels == Labels(3, (1, (2, 3), "waltz"), song_seconds=0.25)
    assert Labels.from_json(json.loads(json.dumps(dataclasses.asdict(labels)))) == labels
    with pytest.raises(ValueError, match="genre must be a name or an id"):
        Labels(genre=(("slow",), 1, 2))


def test_a_folder_with_a_base_takes_the_names_of_its_base(tmp_path, tiny_model, config):
    shutil.copytree(tiny_model, tmp_path / "base")
    checkpoint.save_names(tmp_path / "base", 2, OTHER_NAMES)
    student = tmp_path / "student"
    checkpoint.save_config(student, checkpoint.load_config(tiny_model), base="../base")
    before = checkpoint.fingerprint(student)
    assert Jukebox.from_pretrained(student, backend="eager").names == [None, None, OTHER_NAMES]
    checkpoint.save_names(tmp_path / "base", 2, NAMES)
    assert checkpoint.fingerprint(student) != before


@pytest.mark.parametrize("table", [{"a": -1}, {"a": True}, {"a": 1.5}, []])
def test_lists_without_ids_are_refused(tmp_path, tiny_model, table):
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / checkpoint.names_file(0)).write_text(json.dumps({"artists": table, "genres": {}}))
    with pytest.raises(checkpoint.CheckpointError, match="holds no names of artists and genres"):
        checkpoint.load_names(tmp_path / "model", 0)
