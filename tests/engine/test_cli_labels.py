"""Artists, genres and lyrics on the command line."""

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from fastjukebox.engine import Jukebox, Labels, checkpoint, runs
from fastjukebox.engine.__main__ import main
from fastjukebox.engine.cli.labels import Ids
from labelled_cases import KINDS
from labelled_models import PARAMS, SECONDS, write_model
from openai_files import VQVAE_CONFIG, VQVAE_HPS, label_hps, prior_hps, prior_state, save, vqvae_state

SONG = ("--seconds", str(SECONDS), "--seed", "11", "--temperature", "2", "--hop-fraction", "0.75,0.75,0.5")
TOLD = ("--artist", "Some Body", "--genre", "slow dance", "--song-seconds", "0.2")


@pytest.fixture(scope="module")
def folder(tiny_config, tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "sung", "before", tiny_config)


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    return lambda *args: (main([*map(str, args)]), *capfd.readouterr())


def test_what_is_told_reaches_the_codes(command, folder, monkeypatch):
    Path("words.txt").write_text(PARAMS.labels.lyrics, encoding="utf-8")
    args = ("--model", folder, "--backend", "eager", "--samples", "2", *SONG, *TOLD)
    code, out, err = command("sample", "a.wav", *args, "--lyrics", "words.txt")
    assert (code, err) == (0, "")
    words = len(PARAMS.labels.lyrics)
    assert f"artist Some Body, genre slow dance, {words} characters of lyrics" in out
    expected = Jukebox.from_pretrained(folder, backend="eager").sample(PARAMS)
    assert all(map(torch.equal, runs.Run.open(Path("a.run")).load(), expected.codes))
    monkeypatch.setattr("sys.stdin", io.StringIO(PARAMS.labels.lyrics))
    assert command("sample", "b.wav", *args, "--lyrics", "-")[::2] == (0, "")
    # Ids, one per level; the genres of a level with plus signs.
    ids = ("--artist", "3,3,6", "--genre", "2+4,2+4,8", "--lyrics", "words.txt")
    assert command("sample", "c.wav", *args, *ids)[::2] == (0, "")
    for other in ("b", "c"):
        for item in (0, 1):
            assert Path(f"{other}-{item}.wav").read_bytes() == Path(f"a-{item}.wav").read_bytes()


def test_one_number_may_be_a_name_and_several_are_ids():
    assert Ids(False).convert("311", None, None) == "311" and Ids(False).convert("311,4", None, None) == (311, 4)
    assert Ids(True).convert("3+17,4", None, None) == ((3, 17), (4,))


def test_one_id_is_for_all_levels(command, folder):
    preview = ("--model", folder, "--level", "2", *SONG)
    assert command("sample", "a.wav", *preview, "--artist", "nobody,", "--genre", "waltz")[0] == 2
    assert command("sample", "a.wav", *preview, "--artist", "nobody", "--genre", "waltz")[::2] == (0, "")
    assert command("sample", "b.wav", *preview, "--artist", "1", "--genre", "2")[::2] == (0, "")
    assert Path("a.wav").read_bytes() == Path("b.wav").read_bytes()
    assert "takes at most 1 genres" in command("sample", "c.wav", *preview, "--genre", "2+4")[2]


def test_a_run_passes_on_what_it_was_told(command, folder):
    first = ("--model", folder, "--level", "2", *SONG)
    assert "an unknown artist, an unknown genre, no lyrics" in command("sample", "0.wav", *first)[1]
    assert command("sample", "a.wav", *first, *TOLD)[::2] == (0, "")
    assert command("resume", "a.run", "--overwrite")[::2] == (0, "")
    longer = ("--seconds", "0.15", "--level", "2")
    assert command("continue", "a.run", "b.wav", *longer, "--artist", "nobody")[::2] == (0, "")
    told = runs.Run.open(Path("b.run")).request.params.labels
    assert told == Labels("nobody", "slow dance", song_seconds=0.2)
    assert command("upsample", "a.run", "c.wav", "--level", "1", "--model", folder)[::2] == (0, "")
    assert runs.Run.open(Path("c.run")).request.params.labels == Labels("Some Body", "slow dance", song_seconds=0.2)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--artist", "Som Body"), "level 0 artist 'Som Body' is not one that the model knows; close to it: some_body"),
        (("--artist", "1+2"), "'1+2' is more than one artist"),
        (("--genre", "1,2"), "genre has 2 values, the model has 3 levels"),
        (("--lyrics", "nowhere.txt"), "cannot read nowhere.txt: No such file"),
        (("--lyrics", "bytes"), "cannot read bytes: it is no text"),
        (("--song-seconds", "0.01"), "a song of 0.01 s cannot begin with"),
        (("--song-seconds", "9"), "this model knows songs of 0.1 to less than 0.25 s"),
    ],
)
def test_what_cannot_be_told_is_one_line(command, folder, args, message):
    Path("bytes").write_bytes(bytes(range(256)))
    code, out, err = command("sample", "a.wav", "--model", folder, *SONG, *args)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1
    assert not Path("a.run").exists()


def test_a_model_without_labels_refuses_them(command, tiny_model):
    code, _, err = command("sample", "a.wav", "--model", tiny_model, "--seconds", "0.02", "--artist", "somebody")
    assert code == 2 and "knows no artists, genres or lyrics" in err


def test_info_says_what_a_model_knows(command, folder):
    out = command("info", "--model", folder)[1]
    assert "7 artists and 6 genres by name or id" in out
    assert "9 artists and 10 genres by name or id, songs of 0.1 to 0.25 s, 12 characters of lyrics a window" in out


@pytest.fixture
def openai_folder(tmp_path, networks, files):
    """A top prior that knows labels, above the upsamplers of the other tests."""
    from dataclasses import replace

    from fastjukebox.engine.prior import Prior

    config = replace(KINDS["labels"], codebook_size=VQVAE_CONFIG.codebook_size)
    sizes = {"prior_width": 32, "prior_depth": config.depth, "blocks": config.num_rows}
    save(files / "vqvae.pth.tar", vqvae_state(networks[0]), VQVAE_HPS)
    save(files / "prior_level_2.pth.tar", prior_state(Prior(config)), prior_hps(2, **sizes, **label_hps(config)))
    return files


def test_lists_of_names_come_with_the_model(command, openai_folder):
    lists = Path("ids")
    lists.mkdir()
    # Ids up to 8 and 6 fit a model of 9 artists and 7 genres; the longer lists do not, the shorter ones are others'.
    for kind, artists, genres in (("v1", 3, 2), ("v2", 9, 7), ("v3", 30, 20)):
        (lists / f"{kind}_artist_ids.txt").write_text("".join(f"{kind} Ä;b {n};{n}\n" for n in range(artists)))
        (lists / f"{kind}_genre_ids.txt").write_text("".join(f"{kind}_g{n};{n}\n" for n in range(genres)))
    # As some editors begin a file.
    (lists / "v2_artist_ids.txt").write_text((lists / "v2_artist_ids.txt").read_text(), encoding="utf-8-sig")
    code, _, err = command("convert", openai_folder, "model", "--names", "ids")
    assert code == 0, err
    names = checkpoint.load_names(Path("model"), 2)
    assert names.artists == {f"v2 ä;b {n}": n for n in range(9)} and names.genres["v2_g6"] == 6
    assert checkpoint.load_names(Path("model"), 0) is None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("v2_artist_ids.txt", "somebody;30\n", r"no lists for a model of 9 artists and 7 genres: v2_artist_ids.txt"),
        ("v2_artist_ids.txt", "somebody\n", "v2_artist_ids.txt: lines must be `name;id`"),
        ("v2_genre_ids.txt", None, "v2_genre_ids.txt: No such file"),
        ("v2_artist_ids.txt", None, "no *artist_ids.txt"),
    ],
)
def test_lists_that_do_not_fit_are_refused(command, openai_folder, name, text, message):
    lists = Path("ids")
    lists.mkdir()
    (lists / "v2_artist_ids.txt").write_text("somebody;3\n")
    (lists / "v2_genre_ids.txt").write_text("waltz;3\n")
    (lists / name).unlink()
    if text:
        (lists / name).write_text(text)
    code, _, err = command("convert", openai_folder, "model", "--names", "ids")
    assert code == 2 and message in err.splitlines()[-1]
    assert not Path("model").exists()


def test_names_that_stand_where_the_model_goes_are_left_alone(command, openai_folder):
    Path("model").mkdir()
    Path("model", "names_2.json").write_text("mine")
    code, _, err = command("convert", openai_folder, "model")
    assert code == 2 and "already holds names_2.json" in err
    assert Path("model", "names_2.json").read_text() == "mine"
    code, _, err = command("convert", openai_folder, "other", "--names", "nowhere")
    assert code == 2 and "nowhere: is no folder" in err and not Path("other").exists()


def test_damaged_names_are_one_line(command, folder):
    shutil.copytree(folder, "model")
    for text in ("{", "[]", json.dumps({"artists": {"a": "b"}, "genres": {}})):
        Path("model", checkpoint.names_file(1)).write_text(text)
        code, _, err = command("sample", "a.wav", "--model", "model", *SONG)
        assert code == 2 and "holds no names of artists and genres" in err and err.count("\n") == 1
