"""The commands that judge audio, on a small corpus."""

import json
import shutil

import fastjukebox.distill.audio_commands  # noqa: F401
import pytest
import torch
from click.testing import CliRunner
from fastjukebox.distill.code_store import write_store
from fastjukebox.distill.commands import train
from fastjukebox.distill.corpus import write_corpus
from fastjukebox.distill.valence import held_out_songs
from fastjukebox.engine.config import VQVAEConfig
from fastjukebox.engine.runs import save_codes
from fastjukebox.engine.vqvae import VQVAE


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, 24, 4.0, seed=3)
    return folder


def run(*words):
    done = CliRunner().invoke(train, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_a_classifier_is_trained_and_scores_a_folder(corpus, tmp_path):
    (figures,) = run("valence-train", corpus, tmp_path, "--steps", 3, "--preset", "tiny")
    assert figures["held_out_songs"] >= 4 and 0 <= figures["pr_auc"] <= 1 and 0 <= figures["roc_auc"] <= 1
    (row,) = run("valence", tmp_path, corpus)
    assert row.pop("folder") == str(corpus) and sum(row.values()) == pytest.approx(1)


def test_a_classifier_says_what_it_held_out_and_goes_on_with_the_same_only(corpus, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    train_words = ["valence-train", corpus, out, "--steps", 3, "--preset", "tiny", "--seed", 4]
    first = run(*train_words)
    about = json.loads((out / "valence.json").read_text())
    held_out = held_out_songs(out, corpus)
    assert about["seed"] == 4 and about["held_out"] == sorted(song.path.name for song in held_out)
    assert len(held_out) == first[0]["held_out_songs"]
    shutil.copytree(corpus, other)
    assert run("valence-train", other, *train_words[2:]) == first, "the same songs elsewhere are the same"
    assert [song.path for song in held_out_songs(out, other)] == [other / song.path.name for song in held_out]
    with pytest.raises(ValueError, match="begun with seed 4, not 5"):
        run(*train_words[:-1], 5)
    with pytest.raises(ValueError, match="begun with steps 3, not 4"):
        run(*train_words, "--steps", 4)
    lines = (other / "labels.csv").read_text().splitlines()
    (other / "labels.csv").write_text("\n".join(lines[:-1]))
    with pytest.raises(ValueError, match="begun with training"):
        run("valence-train", other, *train_words[2:])


def test_a_classifier_holds_out_what_priors_hold_out(corpus, tmp_path):
    vqvae = VQVAE(VQVAEConfig(codebook_size=8, code_dim=4, width=4, depth=1, multipliers=(1, 1, 1)))
    store = write_store(corpus, tmp_path / "codes", vqvae, 5, 0, levels=[2])
    words = ["--steps", 1, "--preset", "tiny", "--codes", tmp_path / "codes"]
    run("valence-train", corpus, tmp_path / "out", *words)
    theirs = {store.songs[index].path for index in store.indices("held_out")}
    assert theirs < {song.path.name for song in held_out_songs(tmp_path / "out", corpus)}
    (tmp_path / "few.csv").write_text(f"file,quadrant\n{corpus}/song-0000.flac,AP\n")
    with pytest.raises(ValueError, match="does not name"):
        run("valence-train", tmp_path / "few.csv", tmp_path / "few", *words)


def test_a_corpus_is_at_no_distance_from_itself(corpus):
    (found,) = run("frechet", corpus, corpus)
    assert found["distance"] < 1e-6 and found["patches"] == [72, 72]


def test_codebook_usage_of_a_run(tmp_path):
    codes = [torch.tensor([[0, 1, 2, 3, 3, 3]]), torch.zeros(1, 0, dtype=torch.long), torch.tensor([[7, 7]])]
    save_codes(tmp_path / "codes.safetensors", codes)
    for source in (tmp_path, tmp_path / "codes.safetensors"):
        fine, top = run("usage", source, "--codebook-size", 8)
        assert (fine["level"], fine["codes"], fine["codes_used"]) == (0, 6, 4) and 3 < fine["perplexity"] < 4
        assert (top["level"], top["codes_used"], top["perplexity"]) == (2, 1, pytest.approx(1))
    refused = CliRunner().invoke(train, ["usage", str(tmp_path), "--codebook-size", "7"])
    assert refused.exit_code == 2 and "larger --codebook-size" in refused.output
