"""`make gpu` in small, on a CPU: its flow, how it resumes, what a failing stage leaves, and the scripts it calls."""

import argparse
import subprocess
import sys
import time

import pytest
import torch
from fastjukebox.bench import attention, bandwidth, decode, gpu, harness, ops, peers, prefill

SMALL = ["--device", "cpu", "--threads", "1", "--quick", "--rounds", "2"]


@pytest.fixture(autouse=True)
def _small_memory(monkeypatch):
    """A bandwidth that takes no time to measure."""
    plain = bandwidth.plain
    for module in (attention, decode, ops):
        monkeypatch.setattr(module, "plain", lambda device, size: plain(device, 1 << 20))


def script(name, *code):
    return gpu.Stage(name, 1, code)


def test_a_rehearsal_resumes_and_ends_with_a_table(tmp_path, monkeypatch, capsys):
    decode_stage = next(stage for stage in gpu.rehearsal() if stage.name == "decode")
    monkeypatch.setattr(gpu, "rehearsal", lambda: [decode_stage, script("broken", "decode", "--sizes", "wide")])
    arguments = ["--rehearse", "--results", str(tmp_path / "r.json"), "--logs", str(tmp_path)]
    assert gpu.main(arguments) == 1
    printed = capsys.readouterr().out
    assert "1x32 eager fp32 batch 1" in printed.split("sources")[1]
    assert "it needs an NVIDIA GPU" in printed
    assert "not to be reported" in printed
    first = harness.read(tmp_path / "r.json")
    assert [r["status"] for r in first if r["bench"] == "gpu"] == ["passed", "failed"]
    assert "neither LAYERSxWIDTH" in first[-1]["error"]
    assert all({"device", "torch", "triton", "commit", "sources", "time"} <= set(record) for record in first)
    # A line that was cut short is passed over.
    with (tmp_path / "r.json").open("a") as file:
        file.write('{"bench": "gpu", "row": "other"')
    assert gpu.main(arguments) == 1
    assert harness.read(tmp_path / "r.json") == first
    assert "1x32 eager fp32 batch 1" in capsys.readouterr().out
    harness.append(tmp_path / "r.json", {"row": "next"})
    assert harness.read(tmp_path / "r.json") == [*first, {"row": "next"}]


def test_a_stage_that_takes_too_long_is_ended_with_its_children(tmp_path):
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    began = time.monotonic()
    assert gpu.run([sys.executable, "-c", code], tmp_path / "log", 0.5, {}) is None
    assert time.monotonic() - began < 30
    status = gpu.run([sys.executable, "-c", "print('so far'); raise SystemExit(75)"], tmp_path / "log", 60, {})
    assert status == harness.CUT
    assert (tmp_path / "log").read_text() == "so far\n"


def test_a_stage_that_is_run_again_leaves_out_rows_that_failed(tmp_path, monkeypatch):
    def failing(command, log, limit, environment):
        commands.append(command)
        log.write_text("")

    commands = []
    monkeypatch.setattr(gpu, "run", failing)
    options = argparse.Namespace(logs=tmp_path, rehearse=True)
    assert gpu.run_stage(script("decode", "decode"), options, tmp_path / "r.json", 60)["status"] == "cut"
    assert {"--resume", "--no-retry"} <= set(commands[0])


def test_failed_tests_are_counted_and_named(tmp_path):
    path = tmp_path / "junit.xml"
    path.write_text(
        '<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1"><testcase classname="a" name="b">'
        '<failure message="off by 2"/></testcase></testsuite></testsuites>'
    )
    report = gpu.test_report(path)
    assert report == {"tests": 3, "failures": 1, "errors": 0, "skipped": 1, "failed": ["a::b: off by 2"]}


def test_every_stage_is_a_command_that_its_script_takes():
    for stage in gpu.stages():
        if not stage.name.startswith("tests"):
            assert stage.command[0] in gpu.SAY
    assert any("test_prefill_attention" in word for word in gpu.stages()[0].command)


def test_peers_are_timed_at_three_batches_the_long_ones_late():
    names = [stage.name for stage in gpu.stages()]
    asked = [peers.parser().parse_args(stage.command[1:]) for stage in gpu.stages() if stage.command[0] == "peers"]
    assert [(options.batch, options.window) for options in asked] == [([1], 64), ([4, 16], None)]
    assert len(set(names)) == len(names) and names.index("table 1") < names.index("peers, batch")


def test_make_bench_measures_the_cpu_where_its_files_say_so():
    lines = (harness.ROOT / "Makefile").read_text().split("\nbench:")[1].split("\n\n")[0].splitlines()
    measured = [line for line in lines if "--json" in line and "bench int8" not in line]
    assert len(measured) == 4 and all("--device cpu" in line for line in measured)


@pytest.mark.parametrize(
    ("script", "arguments", "rows"),
    [
        (decode, ["--sizes", "1x32", "--decoders", "eager", "--batch", "1", "2", "--aim", "0.01"], 2),
        (prefill, ["--sizes", "1x32", "--codes", "66"], 1),
        (attention, ["--shapes", "upsampler", "--patterns", "column", "--codes", "2", "4", "--head-dim", "16"], 2),
        (ops, ["--sizes", "1x32", "--implementations", "reference", "triton"], 9),
    ],
)
def test_a_script_records_each_row_once(script, arguments, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "device_state", lambda device: {"device": harness.device_name(device)})
    path = tmp_path / "r.json"
    for _ in range(2):
        assert script.main([*arguments, *SMALL, "--json", str(path), "--resume"]) == 0
    records = harness.read(path)
    assert len(records) == len({record["row"] for record in records}) == rows
    assert not any(record.get("error") for record in records)
    assert torch.get_num_threads() == 1
    later = [*arguments, *SMALL, "--json", str(tmp_path / "other.json"), "--seconds", "-1"]
    assert script.main(later) == harness.CUT
    assert not (tmp_path / "other.json").exists()


def test_few_packages_are_needed():
    """A machine with a GPU may have PyTorch and little else; nothing can be installed on some."""
    code = """
import runpy, sys
sys.modules |= dict.fromkeys(("soundfile", "soxr", "librosa", "matplotlib", "sklearn", "jinja2", "tensorboard"))
import pytest
from fastjukebox.bench import attention, decode, gpu, ops, peers, prefill, roofline, scaling, table1
request = ["--sizes", "tiny", "--audio-seconds", "0.05", "--backends", "eager", "--device", "cpu", "--threads", "1"]
assert table1.main([*request, "--quick"]) == 0
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *gpu.stages()[0].command, gpu.PERSISTENT]))
"""
    start = (
        f"import types, sys; package = types.ModuleType('fastjukebox'); package.__path__ = [{str(harness.ROOT)!r}]\n"
    )
    start += "sys.modules['fastjukebox'] = package\n"
    done = subprocess.run([sys.executable, "-c", start + code], cwd=harness.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_bytes_per_step_are_those_of_the_facts():
    """72 layers of the upsampler move 1610 MB per step in 16 bits."""
    case = decode.Case("triton", "upsampler-0-72", "fp16", 1)
    config, conditioned = decode.size(case.size)
    assert 1.60e9 < decode.bytes_per_step(case, config, conditioned, 4096) < 1.63e9
    int8 = decode.bytes_per_step(case._replace(decoder="triton-int8"), config, conditioned, 4096)
    assert 0.80e9 < int8 < 0.83e9
