"""The model card says what was trained on: the corpus, or a folder of the user's."""

import json
import shutil

from fastjukebox.distill.card import card
from fastjukebox.distill.work import Work


def test_the_corpus_is_told(stack):
    text = card(Work(stack, "tiny"))
    assert "music that it renders itself" in text and "Licence: MIT" in text and "A teacher grows" in text


def test_own_audio_is_told_as_what_it_is(stack, tmp_path):
    folder = tmp_path / "w"
    shutil.copytree(stack, folder)
    for shallow in folder.glob("teacher-72/*/shallow"):
        shutil.rmtree(shallow)
    path = folder / "codes" / "manifest.json"
    manifest = json.loads(path.read_text())
    for song in manifest["songs"]:
        song["file"] = "album/" + song["file"]
        song["seconds"] = 60.0
    path.write_text(json.dumps(manifest))
    text = card(Work(folder, "tiny"))
    songs, held_out = len(manifest["songs"]), sum(song["split"] == "held_out" for song in manifest["songs"])
    assert f"{songs} songs of a folder of audio, {songs:.1f} minutes" in text and f"{held_out} of them are held" in text
    for words in ("renders", "MIT", "generated", "distill/corpus.py", "A teacher grows", "`fastjukebox-train stack"):
        assert words not in text
