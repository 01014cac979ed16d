"""Rooflines: bytes by part are those of the tensors that decoders hold; records; the costs of exchanges on a GPU."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fastjukebox.bench import attention, bandwidth, decode, harness, ops, prefill, roofline
from fastjukebox.bench.step_bytes import PARTS, bytes_by_part
from fastjukebox.engine.config import LabelConfig, LyricConfig, PriorConfig
from fastjukebox.engine.native_decoder import NativeDecoder
from fastjukebox.engine.patterns import Pattern, mask
from fastjukebox.engine.prior import Prior
from fastjukebox.kernels import native_library
from fastjukebox.kernels.packing import pack_weight

ROOT = Path(__file__).parent.parent.parent
ODD = PriorConfig(0, 40, 4, 2, 60, 6, codebook_size=33, attn_ratio=0.3, mlp_ratio=1.5)
SIZES = [ODD, dataclasses.replace(ODD, width=24, depth=7, heads=1, codebook_size=50, attn_ratio=0.25)]
SMALL = ["--device", "cpu", "--threads", "1", "--quick", "--rounds", "2", "--aim", "0.002"]
QUANTILES = {"p20", "p50", "p80"}


@pytest.fixture(autouse=True)
def _small_memory(monkeypatch):
    monkeypatch.setattr(roofline, "reading", lambda device, nbytes: bandwidth.reading(device, 1 << 20))
    monkeypatch.setattr(roofline, "copying", lambda device, nbytes: bandwidth.copying(device, 1 << 19))


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("config", SIZES)
def test_weights_by_part_are_the_bytes_of_the_priors_tensors(config, dtype, int8):
    prior = Prior(config).to(dtype)
    stored = {name: p for name, p in prior.named_parameters() if name.startswith("layers.")}
    matrices = [pack_weight(p, int8) for name, p in stored.items() if name.endswith("weight") and ".ln_" not in name]
    head = pack_weight(prior.token_embedding.T, int8)
    vectors = sum(p.nbytes for name, p in stored.items() if name.endswith("bias") or ".ln_" in name)
    scales = sum(m.scale.nbytes for m in (*matrices, head) if m.scale is not None)
    parts = bytes_by_part(config, 1, 0, True, 1 if int8 else dtype.itemsize, dtype.itemsize, dtype.itemsize)
    assert tuple(parts) == PARTS
    assert parts["projections"] == sum(m.weight.nbytes for m in matrices)
    assert parts["head"] == head.weight.nbytes
    assert parts["vectors"] == vectors + scales
    assert parts["embedding"] == 4 * prior.token_embedding[0].nbytes


@pytest.mark.skipif(native_library.missing() is not None, reason="the native decoder is not built")
@pytest.mark.parametrize(("values", "int8"), [("fp32", False), ("fp16", False), ("fp16", True)])
@pytest.mark.parametrize(("width", "depth"), [(128, 3), (256, 5)])
def test_weights_add_up_to_what_the_native_decoder_packs(width, depth, values, int8):
    """Widths are whole panels: what the decoder pads with is not counted."""
    config = PriorConfig(0, width, depth, 2, 64, 8, codebook_size=96)
    prior = Prior(config).requires_grad_(False)
    for parameter in prior.parameters():
        parameter.copy_(parameter.to(decode.DTYPES[values]))
    decoder = NativeDecoder(prior, 1, int8)
    packed = decoder.model._weights.nbytes
    tables = prior.token_embedding.nbytes + prior.pos_embedding.nbytes + prior.start_token.nbytes
    case = decode.Case("native-int8" if int8 else "native", "", "fp32", 1, values="" if int8 else values)
    parts = decode.step_parts(case, config, False, 0)
    assert parts["projections"] + parts["head"] + parts["vectors"] == packed - tables
    assert sum(parts.values()) == decode.bytes_per_step(case, config, False, 0)
    # At position 0 each layer but those of the previous row sees its own alone, and writes it.
    seen = sum(1 + (pattern is not Pattern.PREVIOUS_ROW) for pattern in config.layer_patterns)
    assert parts["keys_values"] == 2 * seen * config.attn_width * decoder.cache[0].keys.element_size()


@pytest.mark.parametrize("pos", [0, 5, 10, 34, 59])
def test_keys_and_values_are_those_that_the_patterns_let_a_position_see(pos):
    own = tuple(pattern for pattern in Pattern if pattern is not Pattern.CROSS)
    sung = {"labels": LabelConfig(3, 3, 1), "lyrics": LyricConfig(9, ODD.num_rows + 1)}
    config = dataclasses.replace(ODD, depth=5, pattern_cycle=own, **sung)
    # Lyrics, and codes up to a whole number of rows.
    reach = 2 * ODD.num_rows
    seen = sum(int(mask(p, config.context_len, config.row_len, reach)[pos].sum()) for p in config.layer_patterns)
    parts = bytes_by_part(config, 3, pos, False, 4, 2, 4)
    # Those that are read, and the position's own, which are written; keys and values, of 2 bytes.
    assert parts["keys_values"] == 3 * 2 * 2 * config.attn_width * (seen + config.depth - (pos >= reach))


def test_a_layer_that_attends_to_an_encoder_projects_queries_alone():
    encoder = PriorConfig(0, 8, 1, 1, 6, 2, codebook_size=9)
    sung = {"labels": LabelConfig(3, 3, 1), "lyrics": LyricConfig(9, 6, encoder)}
    config = dataclasses.replace(ODD, depth=1, pattern_cycle=(Pattern.CROSS,), **sung)
    prior = Prior(config)
    parts = bytes_by_part(config, 1, 7, False, 4, 4, 4)
    layer = sum(p.numel() for name, p in prior.layers.named_parameters() if "lyric_kv" not in name)
    assert parts["projections"] + parts["vectors"] == 4 * layer
    # All of the lyrics are read, nothing is written.
    assert parts["keys_values"] == 4 * 2 * 6 * config.attn_width


def test_what_ifs_are_the_floors_of_the_facts():
    """Upsampler on a P100: 2199, 740 and 558 us per step at 72, 24 and 18 layers."""
    for depth, floor in ((72, 2199), (24, 740), (18, 558)):
        found = roofline.what_if("Tesla P100 16GB", "upsampler", depth)
        assert abs(found["floor_us_at_full_bandwidth"] / floor - 1) < 0.01
        assert found["steps_per_s_at_full_bandwidth"] * found["floor_us_at_full_bandwidth"] == pytest.approx(1e6, 1e-4)


def test_records_hold_what_tables_read(tmp_path, capsys, monkeypatch):
    path = tmp_path / "r.jsonl"
    monkeypatch.setattr(roofline, "CARDS", {"H200": 4800})
    words = ["--sizes", "demo-2x32", "1x32", "--decoders", "eager", "native", "native-int8", *SMALL]
    for _ in range(2):
        assert roofline.main([*words, "--json", str(path), "--resume"]) == 0
    printed = capsys.readouterr().out
    assert "kernel boundary, grid barrier: not yet measured on a GPU" in printed
    assert "estimated, not measured" in printed
    records = harness.read(path)
    assert len(records) == len({r["row"] for r in records}) == 2 * 4 + len(roofline.CARDS) * 6
    steps = [r for r in records if "card" not in r]
    assert {r["dtype"] for r in steps} == {"fp16", "fp32", "int8"} and {r["width"] for r in steps} == {32}
    assert {(r["size"], r["context_len"]) for r in steps} == {("demo-2x32", 2048), ("1x32", 8192)}
    for r in steps:
        assert not r.get("error") and not r.get("missing"), r
        assert r["bench"] == "roofline" and {"size", "decoder", "batch", "depth", "device", "sources"} <= set(r)
        assert tuple(r["bytes"]) == PARTS and sum(r["bytes"].values()) == r["bytes_per_step"]
        for key in ("read_gb_per_s", "copy_gb_per_s", "floor_us", "us_per_step", "percent"):
            assert set(r[key]) == QUANTILES and r[key]["p50"] > 0
    for r in records:
        if "card" in r:
            assert r["estimated"] is True and r["published_gb_per_s"] == roofline.CARDS[r["card"]]
            assert r["row"] == f"what-if {r['card']} {r['depth']} layers {r['model']} fp16"


@pytest.mark.parametrize("script", [roofline, decode])
def test_floors_and_shares_are_of_the_bandwidth_in_the_same_round(monkeypatch, script):
    """8 MB a step; 10 steps in 4 and 2 ms are 400 and 200 us; reads of 1 GB in 50 and 100 ms are 20 and 10 GB/s."""
    times = {"decode": [0.004, 0.002], "read": [0.05, 0.1], "bandwidth": [0.05, 0.1], "copy": [0.2, 0.2]}
    stepping = SimpleNamespace(config=ODD, conditioned=True, steps=10, first=30, turn=None, middle=lambda: 0)
    monkeypatch.setattr(script, "Stepping", lambda *_: stepping)
    monkeypatch.setattr(script, "rounds_of", lambda *_: times)
    for module in (decode, roofline):
        monkeypatch.setattr(module, "step_parts", lambda *_: {"head": 3_000_000, "vectors": 5_000_000})
    mover = SimpleNamespace(nbytes=10**9, run=None)
    movers = (mover, mover) if script is roofline else (mover,)
    found = script.measure(decode.Case("eager", "1x32", "fp32", 3), torch.device("cpu"), *movers, 2, 0.1)
    middles = {name: value["p50"] for name, value in found.items() if isinstance(value, dict) and "p50" in value}
    # The floors are 400 and 800 us.
    expected = {"us_per_step": 300.0, "percent": 250.0}
    if script is roofline:
        expected |= {"read_gb_per_s": 15.0, "copy_gb_per_s": 5.0, "floor_us": 600.0}
    else:
        expected |= {"steps_per_s": 3750.0, "codes_per_s": 11250.0, "gb_per_s": 30.0, "bandwidth_gb_per_s": 15.0}
    assert middles == expected and found["bytes_per_step"] == 8_000_000


def test_steps_fill_the_window_and_bytes_are_those_in_the_middle_of_what_is_timed(monkeypatch):
    task, ran = SimpleNamespace(codes=torch.arange(64)[None], prompt_len=32), []
    decoder = SimpleNamespace(run=lambda start, stop: ran.append((start, stop)))
    monkeypatch.setattr(decode, "prepare", lambda *_: (decoder, task))
    monkeypatch.setattr(decode, "seconds", lambda run, device: run() or 1e-9)
    case, sizes = decode.Case("eager", "", "fp32", 1), (PriorConfig(0, 32, 1, 1, 64, 8), False)
    stepping = decode.Stepping(case, torch.device("cpu"), 4, 0.1, sizes)
    # Four rounds, and one before them that warms up.
    for _ in range(5):
        stepping.turn()
    assert ran == [(32, 33), (33, 34), *((pos, pos + 6) for pos in range(34, 64, 6))]
    assert stepping.middle() == (40 + 64) // 2
    task.codes = torch.zeros(1, 64)
    with pytest.raises(RuntimeError, match="almost all codes are the same: no times are reported"):
        stepping.middle()


@pytest.mark.parametrize("values", ["fp16", "fp32"])
def test_weights_hold_the_values_that_a_row_says(values):
    decoder, _ = decode.prepare(decode.Case("eager", "1x32", "fp32", 1, values=values), torch.device("cpu"))
    weights = torch.cat([p.flatten() for p in decoder.prior.parameters()])
    assert torch.equal(weights, weights.half().float()) == (values == "fp16")


def test_shares_of_operations_are_of_the_rate_in_the_same_round(monkeypatch):
    """2 calls of 3 MB in 2 and 4 ms are 3 and 1.5 GB/s, beside 10 and 20 GB/s."""
    times = {"triton": [0.002, 0.004], "reference": [0.006, 0.02]}
    rates = {"bandwidth": [0.1, 0.05]}
    call, mover = ops.Call(None, 2, 3_000_000), SimpleNamespace(nbytes=10**9, run=None)
    monkeypatch.setattr(ops, "prepare", lambda *_: call)
    prepared = attention.Prepared(dict.fromkeys(times), {}, 2, 3_000_000)
    monkeypatch.setattr(attention, "prepare", lambda *_: prepared)
    for script in (ops, attention):
        monkeypatch.setattr(script, "rounds_of", lambda *_: times | rates)
    figures = [
        ops.measure(ops.Case("norm_up", "1x32", "fp32", 1), list(times), torch.device("cpu"), mover, 2),
        attention.measure(
            attention.Case("small", "row", "fp32", False), attention.window("1x32"), torch.device("cpu"), mover, 2
        ),
    ]
    for found in figures:
        middles = {key: found[key]["p50"] for key in ("triton_us", "reference_us", "triton_percent")}
        assert middles == {"triton_us": 1500.0, "reference_us": 6500.0, "triton_percent": pytest.approx(18.75)}
    # 3 and 5 times as fast.
    assert figures[1]["speedup_over_reference"]["p50"] == 4.0


def test_shares_of_prompts_are_of_the_products_that_they_need(monkeypatch):
    times = {"cache": [0.002, 0.004], "layers": [0.001, 0.001], "matrix": [0.5, 1.0]}
    monkeypatch.setattr(prefill, "rounds_of", lambda *_: dict(times))
    matrix = SimpleNamespace(run=None, flops=10**9)
    found = prefill.measure("2x32", 64, torch.float32, torch.device("cpu"), matrix, 2)
    layers = Prior(prefill.size("2x32")[0]).layers
    flops = 2 * 64 * sum(p.numel() for p in layers.parameters() if p.dim() == 2)
    assert found["flops"] == flops and found["cache_ms"]["p50"] == 3.0 and found["layers_ms"]["p50"] == 1.0
    # Of 2 and 1 GFLOP/s.
    assert found["cache_percent"]["p50"] == pytest.approx(100 * flops / 4e6, rel=1e-4)
    assert found["matrix_tflops"]["p50"] == 0.0015


def test_a_size_that_there_is_not_is_refused(capsys):
    with pytest.raises(SystemExit):
        roofline.main(["--sizes", "demo-wide", *SMALL])
    assert "neither LAYERSxWIDTH" in capsys.readouterr().err


def test_a_barrier_of_one_program_is_passed_and_counted():
    exchanges = pytest.importorskip("fastjukebox.bench.exchanges", reason="needs triton")
    barriers = exchanges.GridBarriers(torch.device("cpu"), 1, 3, spins=4)
    for _ in range(2):
        barriers.run()
        barriers.check()
    assert barriers.counters[:, 0].tolist() == [3, 0]


def test_a_barrier_that_nobody_else_reaches_is_given_up_and_reported():
    """The interpreter runs programs one after another: the first waits in vain."""
    exchanges = pytest.importorskip("fastjukebox.bench.exchanges", reason="needs triton")
    barriers = exchanges.GridBarriers(torch.device("cpu"), 2, 2, spins=4)
    barriers.run()
    with pytest.raises(RuntimeError, match="given up"):
        barriers.check()


def test_an_exchange_is_the_difference_within_a_round():
    exchanges = pytest.importorskip("fastjukebox.bench.exchanges", reason="needs triton")
    # Both rounds have launches of their own length; 10 exchanges take 20 us in each.
    found = exchanges.differences({"one": [1.0, 2.0], "two": [1.00002, 2.00002]}, 10)
    assert found["us_per_exchange"]["p50"] == pytest.approx(2.0, 1e-3)


def test_kernels_compile_and_the_cpu_does_without_triton():
    pytest.importorskip("triton")
    code = f"""
import sys, types
package = types.ModuleType("fastjukebox")
package.__path__ = [{str(ROOT)!r}]
sys.modules["fastjukebox"] = package
from fastjukebox.bench import roofline
assert "triton" not in sys.modules
from fastjukebox.bench import exchanges
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
signature = {{"arrived_ptr": "*i32", "failed_ptr": "*i32", "count": "i32", "spins": "i32"}}
for architecture in (70, 90):
    target = GPUTarget("cuda", architecture, 32)
    ptx = compile(ASTSource(exchanges._grid_barriers, signature), target=target, options=exchanges.LAUNCH).asm["ptx"]
    assert "acq_rel" in ptx and "acquire" in ptx, ptx
    nothing = ASTSource(exchanges._nothing, {{"x_ptr": "*fp32", "PDL": "constexpr"}}, {{"PDL": architecture == 90}})
    compile(nothing, target=target, options=exchanges.LAUNCH)
"""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.gpu
def test_exchanges_on_a_gpu():
    from fastjukebox.bench import exchanges

    device = torch.device("cuda")
    programs = torch.cuda.get_device_properties(device).multi_processor_count
    with pytest.raises(ValueError, match="multiprocessors"):
        exchanges.GridBarriers(device, programs + 1, 1)
    # Many, and in many rounds, so that their time is seen beside other tests on the same GPU.
    assert exchanges.measure_barrier(device, programs, 20_000, 15)["us_per_exchange"]["p50"] > 0
    assert exchanges.measure_boundary(device, programs, 5_000, False, 15)["us_per_exchange"]["p50"] > 0
