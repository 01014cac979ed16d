"""A run directory holds the old state or the new one, whatever happens, and a resumed run needs nothing but itself."""

import dataclasses
import errno
import json
import os
import shutil

import pytest
import soundfile
import torch
from fastjukebox.engine import Jukebox, Prior, RunError, SamplingParams, checkpoint, runs
from fastjukebox.engine.runs import Run, load_codes, save_codes, write_codes
from run_case import NEW, OLD, REQUEST, assert_holds, begun


class Killed(BaseException):
    pass


@pytest.fixture
def run(tmp_path):
    return begun(tmp_path / "run")


def assert_same(result, expected):
    assert all(torch.equal(*pair) for pair in zip(result.codes, expected.codes, strict=True))
    assert torch.equal(result.audio, expected.audio)


@pytest.fixture
def jukebox(tiny_model):
    return Jukebox.from_pretrained(tiny_model, backend="eager")


def test_a_run_comes_back_as_it_was_saved(run):
    opened = Run.open(run.folder)
    assert opened.request == REQUEST
    assert opened.folder == run.folder
    assert_holds(run.folder, OLD)
    run.save(NEW)
    assert_holds(run.folder, NEW)
    assert sorted(path.name for path in run.folder.iterdir()) == ["codes.safetensors", "request.json"]


@pytest.mark.parametrize(
    "params", [SamplingParams(), SamplingParams(seconds=1 / 3, hop_fraction=0.25), SamplingParams(1.0, 2**63, top_k=3)]
)
def test_every_parameter_survives_the_round_trip(tmp_path, params):
    request = dataclasses.replace(REQUEST, params=params, output=None)
    Run.create(tmp_path, request, OLD)
    assert Run.open(tmp_path).request == request


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_a_save_that_is_killed_leaves_the_old_codes(run, monkeypatch, step):
    def kill(*_):
        raise Killed

    monkeypatch.setattr(os, step, kill)
    with pytest.raises(Killed):
        run.save(NEW)
    monkeypatch.undo()
    assert_holds(run.folder, OLD)
    run.save(NEW)
    assert_holds(run.folder, NEW)
    assert len(list(run.folder.iterdir())) == 2


@pytest.mark.linux
def test_what_takes_the_old_codes_place_is_on_disk_before_and_the_change_after(run, monkeypatch):
    done, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append(os.readlink(f"/proc/self/fd/{file}")), sync(file)))
    monkeypatch.setattr(os, "replace", lambda new, old: (done.append((str(new), str(old))), replace(new, old)))
    run.save(NEW)
    folder, new = str(run.folder), str(run.folder / ".codes.safetensors.new")
    assert done == [new, (new, str(run.folder / "codes.safetensors")), folder]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
def test_a_save_that_fails_says_why_and_leaves_the_old_codes(run, monkeypatch, number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(RunError, match=f"{run.folder}: {os.strerror(number)}.*is valid.*resume"):
        run.save(NEW)
    monkeypatch.undo()
    assert_holds(run.folder, OLD)
    assert len(list(run.folder.iterdir())) == 2


def test_a_write_that_the_system_cuts_short_leaves_the_old_codes(run):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    long = [torch.zeros(1, 100_000, dtype=torch.long)] * 3
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(RunError, match=f"cannot save to {run.folder}: .*is valid"):
            run.save(long)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_holds(run.folder, OLD)
    # Once there is room, it goes on.
    run.save(long)
    assert_holds(run.folder, long)


def test_a_directory_that_cannot_be_made_is_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunError, match=f"cannot make the run directory {folder}"):
            Run.create(folder, REQUEST, OLD)


def test_a_run_is_not_overwritten_unasked(run):
    with pytest.raises(RunError, match=f"{run.folder} holds a run already.*resume"):
        Run.create(run.folder, REQUEST, NEW)
    assert_holds(run.folder, OLD)
    other = dataclasses.replace(REQUEST, samples=1)
    Run.create(run.folder, other, NEW, overwrite=True)
    assert_holds(run.folder, NEW)
    assert Run.open(run.folder).request == other


def test_a_run_that_cannot_be_replaced_is_still_there(run, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(runs, "save_codes", full)
    with pytest.raises(RunError, match=f"cannot make the run directory {run.folder}: No space left"):
        Run.create(run.folder, dataclasses.replace(REQUEST, samples=1), NEW, overwrite=True)
    monkeypatch.undo()
    assert_holds(run.folder, OLD)
    assert Run.open(run.folder).request == REQUEST


def test_codes_of_one_run_never_stand_beside_the_request_of_another(run, monkeypatch):
    replace, calls = os.replace, []

    def killed_later(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed_later)
    with pytest.raises(Killed):
        Run.create(run.folder, dataclasses.replace(REQUEST, samples=1), NEW, overwrite=True)
    monkeypatch.undo()
    with pytest.raises(RunError, match="holds no run"):
        Run.open(run.folder)


def test_a_folder_without_a_run_is_one_error(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RunError, match=f"{folder} holds no run"):
            Run.open(folder)


@pytest.mark.parametrize("keep", [0, 1, 100, -3])
def test_a_damaged_request_is_one_error(run, keep):
    path = run.folder / "request.json"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RunError, match=r"request\.json cannot be read"):
        Run.open(run.folder)


@pytest.mark.parametrize(
    "text", ["[]", "3", "null", "{}", '{"params": 3}', '{"params": {}}', b"\xff\xfe\x00"], ids=lambda text: repr(text)
)
def test_a_request_of_another_kind_is_one_error(run, text):
    (run.folder / "request.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RunError, match=r"request\.json"):
        Run.open(run.folder)


def test_senseless_or_unknown_parameters_in_a_request_are_one_error(run):
    path = run.folder / "request.json"
    values = json.loads(path.read_text())
    for name, value in (("top_p", 0), ("seed", "one"), ("seconds", -1), ("loudness", 11), ("temperature", [1, "hot"])):
        path.write_text(json.dumps({**values, "params": {**values["params"], name: value}}))
        with pytest.raises(RunError, match=r"request\.json cannot be read"):
            Run.open(run.folder)


def test_values_of_another_kind_in_a_request_are_one_error(run):
    path = run.folder / "request.json"
    values = json.loads(path.read_text())
    wrong = [("samples", value) for value in ("5", None, 1.5, -5, 0, 10**15, True)]
    wrong += [("model", 3), ("vqvae", 5), ("backend", None), ("output", ["x"])]
    for name, value in wrong:
        path.write_text(json.dumps({**values, name: value}))
        with pytest.raises(RunError, match=r"request\.json cannot be read"):
            Run.open(run.folder)
    path.write_text("[" * 100_000)
    with pytest.raises(RunError, match=r"request\.json cannot be read"):
        Run.open(run.folder)


@pytest.mark.parametrize("codes", [torch.zeros(3), torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool)])
def test_codes_of_another_kind_are_one_error(tmp_path, codes):
    from safetensors.torch import save_file

    save_file({"level_0": codes}, tmp_path / "codes.safetensors")
    with pytest.raises(RunError, match=r"level_0 is .*, not whole numbers \[items, n\]"):
        load_codes(tmp_path / "codes.safetensors")


def test_a_request_of_another_version_is_told_apart(run):
    path = run.folder / "request.json"
    for more in ({}, {"a_later_field": 1}):
        path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2, **more}))
        with pytest.raises(RunError, match="has format 2; this version reads format 1"):
            Run.open(run.folder)


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_damaged_codes_are_one_error(run, keep):
    path = run.folder / "codes.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RunError, match=r"codes\.safetensors holds no codes"):
        run.load()


def test_missing_codes_or_levels_are_one_error(run, tmp_path):
    (run.folder / "codes.safetensors").unlink()
    with pytest.raises(RunError, match=r"codes\.safetensors does not exist"):
        run.load()
    from safetensors.torch import save_file

    save_file({"level_0": OLD[0], "level_2": OLD[2]}, tmp_path / "codes.safetensors")
    with pytest.raises(RunError, match=r"holds no codes: .*level_1"):
        load_codes(tmp_path / "codes.safetensors")


def test_codes_keep_their_values_in_a_file(tmp_path):
    codes = [torch.tensor([[0, 1, 2047, 2**31 - 1]]), torch.zeros(3, 0, dtype=torch.long)]
    save_codes(tmp_path / "codes.safetensors", [codes[0], codes[1]])
    loaded = load_codes(tmp_path / "codes.safetensors")
    assert all(torch.equal(*pair) for pair in zip(loaded, codes, strict=True))


def test_codes_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_codes(tmp_path / "codes.safetensors", OLD)
    finally:
        os.umask(before)
    assert (tmp_path / "codes.safetensors").stat().st_mode & 0o777 == 0o640


def test_codes_are_for_the_vqvae_that_made_them(tmp_path):
    path = tmp_path / "codes.safetensors"
    save_codes(path, OLD, "mine")
    for vqvae in ("mine", None):
        assert all(torch.equal(*pair) for pair in zip(load_codes(path, vqvae), OLD, strict=True))
    with pytest.raises(RunError, match=r"codes\.safetensors holds codes of another VQ-VAE.*--model"):
        load_codes(path, "other")


def test_resuming_with_other_weights_is_refused(tiny_model, tmp_path, randomize):
    model, run_dir = tmp_path / "model", tmp_path / "run"
    shutil.copytree(tiny_model, model)
    jukebox = Jukebox.from_pretrained(model, backend="eager")
    expected = jukebox.sample(SamplingParams(seconds=0.01, level=2), run_dir=run_dir)
    assert_same(Jukebox.resume(run_dir), expected)
    prior = randomize(Prior(jukebox.config.priors[2]))
    checkpoint.save_network(model / checkpoint.prior_file(2), prior, torch.float32)
    with pytest.raises(RunError, match=f"{run_dir} was begun with other weights than {model}"):
        Jukebox.resume(run_dir)
    shutil.rmtree(model)
    with pytest.raises(RunError, match=f"{model}.*--model"):
        Jukebox.resume(run_dir)
    assert_same(Jukebox.resume(run_dir, model=tiny_model), expected)


def test_resuming_with_codes_of_another_run_is_refused(jukebox, tmp_path):
    run_dir = tmp_path / "run"
    jukebox.sample(SamplingParams(seconds=0.01, level=2), run_dir=run_dir)
    for codes in ([*OLD[:2], OLD[2] + 1], OLD, OLD[:1]):
        save_codes(run_dir / "codes.safetensors", codes)
        with pytest.raises(RunError, match=r"codes\.safetensors"):
            Jukebox.resume(run_dir)


@pytest.mark.parametrize("kind", ["continue", "upsample"])
def test_a_resumed_run_needs_no_source_files(jukebox, tmp_path, kind):
    run_dir, source = tmp_path / "run", tmp_path / "prompt.wav"
    soundfile.write(source, (torch.rand(1000) - 0.5).numpy(), 44100)

    def start(**options):
        params = SamplingParams(seconds=3500 / 44100, seed=2**63, hop_fraction=1.0)
        if kind == "continue":
            return jukebox.continue_audio(source, params, **options)
        return jukebox.upsample([None, None, torch.arange(28)[None]], params, **options)

    def kill(progress):
        if progress.done > 150:
            raise Killed

    expected = start()
    with pytest.raises(Killed):
        start(run_dir=run_dir, progress=kill)
    source.unlink()
    assert_same(Jukebox.resume(run_dir), expected)


def test_resuming_a_finished_run_gives_its_result_again(jukebox, tmp_path):
    params = SamplingParams(seconds=0.005, num_samples=2)
    expected = jukebox.sample(params, run_dir=tmp_path / "run")
    progress = []
    assert_same(Jukebox.resume(tmp_path / "run", progress.append), expected)
    assert not progress


def test_a_run_is_resumed_as_it_was_begun(tiny_model, tmp_path):
    jukebox = Jukebox.from_pretrained(tiny_model, dtype="float16", backend="eager")
    jukebox.sample(SamplingParams(seconds=0.005, level=1), run_dir=tmp_path / "run", output="song.ogg")
    request = Run.open(tmp_path / "run").request
    assert (request.dtype, request.device, request.backend) == ("float16", "cpu", jukebox.backend.name)
    assert (request.samples, request.output, request.model) == (220, "song.ogg", str(tiny_model.resolve()))


def test_a_missing_prior_is_found_before_anything_is_sampled(tiny_model, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / "prior_0.safetensors").unlink()
    jukebox = Jukebox.from_pretrained(model, backend="eager")
    with pytest.raises(ValueError, match=r"prior_0\.safetensors does not exist"):
        jukebox.sample(SamplingParams(seconds=0.01), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert jukebox.sample(SamplingParams(seconds=0.01, level=1)).audio.shape[1] == 441
