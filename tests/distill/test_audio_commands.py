"""The commands that judge audio, on a small corpus."""

import json

import fastjukebox.distill.__main__  # noqa: F401
import pytest
import torch
from click.testing import CliRunner
from fastjukebox.distill.commands import train
from fastjukebox.distill.corpus import write_corpus
from fastjukebox.engine.runs import save_codes


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
