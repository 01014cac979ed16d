"""Peers: the growing cache gives the codes of the eager decoder; checks that stop a comparison; records."""

import argparse
import dataclasses
import importlib.util
from types import SimpleNamespace

import pytest
import torch
from fastjukebox.bench import harness, peers
from fastjukebox.bench.growing_cache import GrowingCache
from fastjukebox.engine.config import ConditionerConfig, PriorConfig
from fastjukebox.engine.patterns import Pattern
from fastjukebox.engine.prior import Prior

# Those that the peer knows.
PATTERNS = (Pattern.ROW, Pattern.COLUMN, Pattern.PREVIOUS_ROW, Pattern.DENSE)
TINY = PriorConfig(2, 32, 4, 2, 48, 6, codebook_size=50, pattern_cycle=PATTERNS)
SMALL = ["--device", "cpu", "--threads", "1", "--depth", "3", "--width", "32", "--context", "256", "--rows", "16"]
SMALL += ["--rounds", "2", "--steps", "3", "--peers", "growing-cache", "--backends", "eager"]


def random_prior(config):
    """Weights so large that attention decides about the codes."""
    prior = Prior(config).requires_grad_(False)
    for name, parameter in prior.named_parameters():
        if ".ln_" not in name:
            parameter.normal_(std=0.7 * parameter.shape[0] ** -0.5 if name.startswith("layers") else 0.5)
    return prior


def sampled(prior, name, codes, prompt_len):
    codes = codes.clone()
    growing = name == "growing-cache"
    batch = len(codes)
    sampler = GrowingCache(prior, peers.TEMPERATURE, peers.SEED) if growing else peers.OurDecoder(prior, batch, name)
    sampler.prefill(codes, prompt_len)
    # In two parts, at no multiple of anything.
    sampler.run(prompt_len, prompt_len + 1)
    sampler.run(prompt_len + 1, codes.shape[1])
    return codes


@pytest.mark.parametrize("pattern", [*PATTERNS, None])
@pytest.mark.parametrize("prompt_len", [0, 1, 13, 24])
def test_the_growing_cache_gives_the_eager_decoders_codes(pattern, prompt_len):
    config = dataclasses.replace(TINY, pattern_cycle=(pattern,)) if pattern else TINY
    prior = random_prior(config)
    codes = torch.randint(config.codebook_size, (3, config.context_len))
    expected = sampled(prior, "eager", codes, prompt_len)
    assert torch.equal(sampled(prior, "growing-cache", codes, prompt_len), expected)
    if pattern:
        # The pattern matters: with any other one, the same weights give other codes.
        for other in set(PATTERNS) - {pattern}:
            changed = Prior(dataclasses.replace(config, pattern_cycle=(other,))).requires_grad_(False)
            changed.load_state_dict(prior.state_dict())
            assert not torch.equal(sampled(changed, "growing-cache", codes, prompt_len), expected)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_growing_caches_logits_are_the_priors(heads, scaled):
    prior = random_prior(dataclasses.replace(TINY, heads=heads, scale_residual=scaled))
    codes = torch.randint(TINY.codebook_size, (2, TINY.context_len))
    expected = prior(codes)
    growing = GrowingCache(prior, 1.0, 1)
    growing.prefill(codes, 11)
    for pos in range(11, TINY.context_len):
        torch.testing.assert_close(growing.logits(pos), expected[:, pos], rtol=1e-4, atol=1e-4)


def test_the_growing_cache_takes_no_conditioner():
    with pytest.raises(ValueError, match="conditioner"):
        GrowingCache(Prior(dataclasses.replace(TINY, conditioner=ConditionerConfig(8, 1))), 1.0, 1)


def test_other_codes_or_logits_stop_the_comparison(monkeypatch):
    arguments = TINY, ["growing-cache"], ["eager"], 2, "fp16", torch.device("cpu")
    comparison = peers.Comparison(*arguments)
    comparison.samplers["growing-cache"].temperature = 3.0
    with pytest.raises(RuntimeError, match=r"codes of .* differ"):
        comparison.steps(2, 4)
    logits = GrowingCache.logits
    monkeypatch.setattr(GrowingCache, "logits", lambda self, pos: logits(self, pos) + 1e-3)
    with pytest.raises(RuntimeError, match="logits of growing-cache differ"):
        peers.Comparison(*arguments)


def test_a_record_for_each_batch_with_windows(tmp_path, capsys):
    path = tmp_path / "p.jsonl"
    assert peers.main([*SMALL, "--batch", "1", "4", "--window", "64", "--json", str(path)]) == 0
    records = harness.read(path)
    assert [r["batch"] for r in records] == [1, 4]
    for r in records:
        assert (r["bench"], r["dtype"], r["threads"], r["peers"]) == ("peers", "float32", 1, ["growing-cache"])
        assert (r["window_steps"], r["extrapolated"]) == (64, True)
        assert {"device", "sources", "values", "backends", "rounds"} <= set(r)
        for name in ("growing-cache", "eager"):
            assert set(r[f"{name}_ms"]) == set(r[f"{name}_window_ms"]) == {"p20", "p50", "p80"}
        assert set(r["eager_over_growing-cache"]) == {"p20", "p50", "p80"}
        assert not any(key.endswith("_speedup") for key in r)
    assert "growing-cache_window_ms" in capsys.readouterr().out


def test_figures_are_milliseconds_and_ratios_within_rounds(monkeypatch):
    times = {"transformers": [0.08, 0.06], "growing-cache": [0.02, 0.04], "native": [0.001, 0.003]}
    monkeypatch.setattr(peers, "Comparison", lambda *_: SimpleNamespace(steps=lambda *_: times))
    args = argparse.Namespace(backends=["native"], values="fp16", device="cpu", rounds=2, steps=10, window=None)
    found = peers.measure(args, TINY, list(peers.PEERS), 1)
    assert {name: value["p50"] for name, value in found.items()} == {
        **{"transformers_ms": 70.0, "growing-cache_ms": 30.0, "native_ms": 2.0},
        **{"growing-cache_speedup": 2.75, "native_speedup": 50.0, "native_over_growing-cache": 16.667},
    }


def test_a_faster_sampler_takes_more_steps_a_round(monkeypatch):
    comparison = peers.Comparison(TINY, ["growing-cache"], ["eager"], 1, "fp16", torch.device("cpu"))
    trial = iter((1.0, 0.5))
    monkeypatch.setattr(peers, "seconds", lambda run, device: run() or next(trial))
    monkeypatch.setattr(harness, "seconds", lambda run, device: run() or 1.0)
    reached = {}
    monkeypatch.setattr(comparison, "_check", reached.update)
    # After 2 steps each of the 23 that remain, rounds and one to warm up have 5 at most.
    assert comparison.steps(3, 2) == {"growing-cache": [1 / 2] * 3, "eager": [1 / 4] * 3}
    # All codes are compared, those of the first steps and of the round that warms up too.
    assert reached == {"growing-cache": 27 + 4 * 2, "eager": 27 + 4 * 4}


@pytest.mark.parametrize("values", ["fp16", "fp32"])
def test_weights_hold_the_values_that_are_said(values):
    comparison = peers.Comparison(TINY, ["growing-cache"], [], 1, values, torch.device("cpu"))
    weights = torch.cat([p.flatten() for p in comparison.samplers["growing-cache"].prior.parameters()])
    assert torch.equal(weights, weights.half().float()) == (values == "fp16")


def test_a_window_is_the_prompt_and_all_of_the_other_half(monkeypatch):
    comparison = peers.Comparison(TINY, ["growing-cache"], ["eager"], 1, "fp16", torch.device("cpu"))
    # Prompt and steps take 2 s each; 6 of 24 steps are timed.
    monkeypatch.setattr(peers, "seconds", lambda run, device: run() or 2.0)
    assert comparison.windows(3, 6) == {"growing-cache": [10.0] * 3, "eager": [10.0] * 3}


def test_a_window_that_is_timed_whole_is_not_extrapolated(tmp_path):
    path = tmp_path / "p.jsonl"
    assert peers.main([*SMALL, "--window", "100", "--json", str(path)]) == 0
    (record,) = harness.read(path)
    # The next multiple of 64.
    assert (record["window_steps"], record["extrapolated"]) == (128, False)


def test_a_comparison_that_fails_says_what_it_was_of(tmp_path, monkeypatch):
    path = tmp_path / "p.jsonl"
    monkeypatch.setattr(peers.Comparison, "steps", lambda *_: 1 / 0)
    assert peers.main([*SMALL, "--batch", "4", "--json", str(path)]) == 1
    (record,) = harness.read(path)
    assert "ZeroDivisionError" in record["error"]
    assert [record[key] for key in ("depth", "width", "batch", "threads", "context")] == [3, 32, 4, 1, 256]


def test_quick_is_three_rounds_of_the_first_batch(tmp_path):
    path = tmp_path / "p.jsonl"
    words = [*SMALL, "--rounds", "5", "--threads", "2", "1", "--batch", "2", "4", "--quick", "--json", str(path)]
    assert peers.main(words) == 0
    (record,) = harness.read(path)
    assert [record[key] for key in ("rounds", "threads", "batch", "quick")] == [3, 1, 2, True]


def test_commands_measure_what_the_records_say(tmp_path):
    path = tmp_path / "p.jsonl"
    assert peers.main([*SMALL, "--batch", "1", "4", "--json", str(path)]) == 0
    assert peers.main([*SMALL, "--batch", "2", "--window", "64", "--json", str(path)]) == 0
    records = harness.read(path)
    commands = peers.commands(records)
    assert len(commands) == 2 and "--batch 1 4 " in commands[0] and "--window 64 " in commands[1]
    for command, found in zip(commands, (records[:2], records[2:])):
        args = peers.parser().parse_args(command.split()[3:])
        assert args.batch == [r["batch"] for r in found] and args.threads == [1]
        for key in ("depth", "width", "heads", "context", "rows", "rounds", "steps", "values", "peers", "backends"):
            assert getattr(args, key) == found[0][key]


def test_transformers_is_compared_at_any_batch(tmp_path):
    pytest.importorskip("transformers.models.deprecated.jukebox.modeling_jukebox", reason="needs transformers 4.57.6")
    path = tmp_path / "p.jsonl"
    words = [*SMALL, "--peers", *peers.PEERS, "--batch", "1", "3", "--window", "64", "--json", str(path)]
    assert peers.main(words) == 0
    for record in harness.read(path):
        for name in (*peers.PEERS, "eager"):
            assert {f"{name}_ms", f"{name}_window_ms"} <= set(record)
        assert {"eager_speedup", "growing-cache_speedup", "eager_over_growing-cache"} <= set(record)


def test_transformers_samples_at_our_temperature():
    pytest.importorskip("transformers.models.deprecated.jukebox.modeling_jukebox", reason="needs transformers 4.57.6")
    prior, seen = random_prior(dataclasses.replace(TINY, pattern_cycle=PATTERNS[:3])), []
    codes = torch.randint(TINY.codebook_size, (2, TINY.context_len))
    expected = prior(codes)[:, 13] / peers.TEMPERATURE
    decoder = peers.TransformersDecoder(prior)
    decoder.prefill(codes, 13)
    decoder.filter_logits = lambda logits, **_: seen.append(logits) or logits
    decoder.run(13, 14)
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-4)


def test_without_transformers_the_growing_cache_remains(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert peers.present(None) == ["growing-cache"]
    assert "not installed" in capsys.readouterr().out


def test_rounds_that_do_not_fit_are_refused(capsys):
    with pytest.raises(SystemExit):
        peers.main([*SMALL, "--rounds", "60"])
    assert "do not fit" in capsys.readouterr().err
