"""Widened networks draw the codes of the small ones, and drafts are timed on them."""

import json
from types import SimpleNamespace

import pytest
import torch
from fastjukebox.bench import speculative, tables
from fastjukebox.bench.harness import read
from fastjukebox.bench.widened import widened
from fastjukebox.engine import Jukebox
from fastjukebox.engine.graph_decoder import GraphDecoder
from fastjukebox.engine.native_decoder import NativeDecoder
from fastjukebox.kernels import native_library, reference


@pytest.mark.parametrize("name", ["demo", "demo-72"])
def test_a_widened_network_has_the_logits_of_the_small_one(name):
    prior = Jukebox.from_pretrained(name, "cpu").prior(0)
    wide = widened(prior, 4)
    assert wide.config.width == 4 * prior.config.width
    codes, cond = torch.randint(prior.config.codebook_size, (1, 200)), 0.3 * torch.randn(1, 200, prior.config.width)
    with torch.inference_mode():
        expected, found = prior(codes, cond), wide(codes, cond.repeat(1, 1, 4)) / 4
    # All weights are rounded to FP16 anew.
    assert (found - expected).abs().max() < 1e-3 * expected.std()


@pytest.mark.skipif(bool(native_library.missing()), reason="needs the native decoder")
def test_drafts_are_timed_and_shown(tmp_path, capsys):
    path = tmp_path / "speculative.jsonl"
    small = ["--width", "256", "--codes", "40", "--rounds", "2", "--threads", "1", "--batch", "1", "3"]
    assert speculative.main(["--pairs", "demo-72:demo", *small, "--json", str(path)]) == 0
    records = read(path)
    assert [r["backend"] for r in records] == ["native"] * 2 + ["native-int8"] * 2
    assert [r["batch"] for r in records] == [1, 3, 1, 3]
    for record in records:
        assert (record["depth"], record["draft_depth"], record["width"], record["codes"]) == (72, 18, 256, 40)
        assert all(0.6 < share <= 1 for share in record["right"].values())
        assert list(record["right"]) == ["2", "4", "8", "16"][: 4 if record["batch"] == 1 else 2]
        for length in record["right"]:
            assert record[f"drafts_{length}_speedup"]["p50"] > 0
    assert "% right" in capsys.readouterr().out
    table = tables.tables(tmp_path)["speculative"]
    systems = [(f"72 x 256, {backend}", "18") for backend in ("native", "native-int8")]
    assert [row[:3] for row in table.rows] == [(*system, batch) for system in systems for batch in ("1", "3")]
    assert "`python bench speculative" in table.note


@pytest.mark.skipif(bool(native_library.missing()), reason="needs the native decoder")
def test_steps_of_transformers_are_timed_beside(tmp_path, monkeypatch):
    pytest.importorskip("transformers.models.deprecated.jukebox")
    path = tmp_path / "speculative.jsonl"
    small = ["--width", "128", "--codes", "16", "--rounds", "2", "--threads", "1", "--backends", "native", "--peer"]
    arguments = ["--pairs", "demo:demo-3", *small, "--batch", "1", "2", "--json", str(path)]

    def rounds_of(ways, *_):
        for run in ways.values():
            run()
        return {name: [taken] for name, taken in seconds.items() if name in ways}

    seconds = {"plain": 0.8, "drafts_2": 0.4, "drafts_4": 0.2, "drafts_8": 0.4, "drafts_16": 0.8}
    seconds |= {"draft": 0.08, "transformers": 0.3}
    monkeypatch.setattr(speculative, "rounds_of", rounds_of)
    assert speculative.main(arguments) == 0
    for record in read(path):
        # 16 codes of each item, and 3 steps.
        assert record["transformers_ms"]["p50"] == pytest.approx(100 / record["batch"])
        ratios = [record[f"{name}_over_transformers"]["p50"] for name in ("plain", "drafts_2", "drafts_4", "drafts_8")]
        assert ratios == pytest.approx([2, 4, 8, 4])
    table = tables.tables(tmp_path)["speculative"]
    assert table.header[-2:] == ("`transformers`, ms per code", "against it without drafts, and with")
    assert all(" codes " in row[-1] and row[-1].count("x (") == 2 for row in table.rows)
    assert "`python bench speculative --peer`" in table.note

    logits = speculative.TransformersDecoder.logits
    monkeypatch.setattr(speculative.TransformersDecoder, "logits", lambda peer, pos: logits(peer, pos) + 0.1)
    assert speculative.main(arguments) == 1
    assert "logits of transformers differ" in json.loads(path.read_text().splitlines()[-1])["error"]


@pytest.mark.skipif(bool(native_library.missing()), reason="needs the native decoder")
def test_times_of_other_codes_are_not_reported(tmp_path, monkeypatch):
    path = tmp_path / "speculative.jsonl"
    speculate = NativeDecoder.speculate

    def wrong(decoder, *arguments):
        right = speculate(decoder, *arguments)
        decoder.task.codes[0, arguments[2] - 1] += 1
        return right

    monkeypatch.setattr(NativeDecoder, "speculate", wrong)
    small = [
        "--width",
        "128",
        "--codes",
        "8",
        "--rounds",
        "1",
        "--threads",
        "1",
        "--batch",
        "1",
        "--backends",
        "native",
    ]
    assert speculative.main(["--pairs", "demo:demo-3", *small, "--json", str(path)]) == 1
    assert "the codes are not those without drafts" in json.loads(path.read_text())["error"]


@pytest.mark.skipif(bool(native_library.missing()), reason="needs the native decoder")
@pytest.mark.parametrize("batch", [1, 2])
def test_cycles_of_a_graph_decoder_are_timed(monkeypatch, batch):
    """What a GPU does, in plain PyTorch."""

    def wide_decoder(name, width, device, backend, batch):
        prior = Jukebox.from_pretrained(name, "cpu").prior(0)
        return GraphDecoder(widened(prior, width // prior.config.width), batch, ops=reference)

    def rounds_of(ways, *_):
        for run in ways.values():
            run()
        return {name: [batch * taken] for name, taken in seconds.items()}

    seconds = {"plain": 0.4, "drafts_4": 0.1, "drafts_8": 0.2, "draft": 0.04}
    monkeypatch.setattr(speculative, "wide_decoder", wide_decoder)
    monkeypatch.setattr(speculative, "rounds_of", rounds_of)
    monkeypatch.setattr(speculative, "LENGTHS", (4, 8))
    rows = SimpleNamespace(rounds=1)
    figures = speculative.measure("demo", "demo-3", 256, torch.device("cpu"), "native", batch, 40, 1, rows)
    assert figures["right"].keys() == {"4", "8"} and all(0.3 < share < 1 for share in figures["right"].values())
    # 40 codes of each item.
    middles = {name: value["p50"] for name, value in figures.items() if name.endswith(("_ms", "_speedup"))}
    assert middles == {
        **{"plain_ms": 10.0, "drafts_4_ms": 2.5, "drafts_8_ms": 5.0, "draft_ms": 1.0},
        **{"drafts_4_speedup": 4.0, "drafts_8_speedup": 2.0},
    }
    assert "% right" in speculative.say(figures)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "demo"], "'demo' is not MODEL:DRAFT"),
        (["--width", "200"], "width 200 is no multiple of 128"),
        (["--backends", "eager"], "drafts on cpu are for the native decoders, not for eager"),
        (["--pairs", "demo:nothing"], "nothing"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_words(arguments, message, capsys):
    with pytest.raises(SystemExit):
        speculative.main(arguments)
    assert message in capsys.readouterr().err
