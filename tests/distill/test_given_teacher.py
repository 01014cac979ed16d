"""Students of a model that somebody else trained, with labels and lyrics: `fastjukebox-train --teacher`."""

import dataclasses
import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from fastjukebox.distill.card import card
from fastjukebox.distill.commands import train
from fastjukebox.distill.forward import forward
from fastjukebox.distill.given_teacher import GivenTeacher
from fastjukebox.distill.presets import PRESETS
from fastjukebox.distill.settings import changed
from fastjukebox.distill.work import Work
from fastjukebox.engine import Jukebox, Labels, SamplingParams, checkpoint
from fastjukebox.engine.labels import lyric_tokens
from fastjukebox.engine.native_decoder import NativeDecoder
from fastjukebox.engine.speculative_decoder import SpeculativeDecoder
from fastjukebox.kernels import native_library
from given_models import KINDS, RATE, SONGS, write_given, write_songs
from reference_labels import told

# Four layers have one of every pattern, three fewer of some.
SETTINGS = ("--set", "depths.18=4", "--set", "epochs.layers=0.3", "--set", "epochs.prediction=0.3")


def command(folder, *words):
    return CliRunner().invoke(train, [words[0], "--work", str(folder), "--device", "cpu", *words[1:]])


def done(folder, *words):
    ended = command(folder, *words)
    assert ended.exit_code == 0, (ended.output, ended.exception)
    return ended.output


@pytest.fixture(scope="module", params=KINDS)
def given(request, tmp_path_factory):
    """A work folder with both stages of a student of a given model, by what a user types; and its model and songs."""
    root = tmp_path_factory.mktemp(request.param)
    model, songs, work = write_given(root / "model", request.param), write_songs(root / "songs"), root / "work"
    done(work, "encode", "--teacher", str(model), "--preset", "tiny", "--audio", str(songs), *SETTINGS)
    for name in ("student-18-layers", "student-18"):
        done(work, "distill", "--system", name)
    return request.param, work, model, songs


def test_training_windows_are_told_what_sampling_tells(given):
    kind, folder, model, _ = given
    if kind == "plain":
        assert Work(folder, "tiny").windows(2).told is None
        return
    work = Work(folder, "tiny")
    other_names = {"a.wav": (6, (8,)), "b/c.wav": (5, (2,))}
    texts = {name: lyrics or "" for name, *_, lyrics in SONGS}
    for level in work.levels:
        prior, windows, places = checkpoint.load_prior(model, level), work.windows(level), []
        config, store, tell = prior.config, windows.store, windows.told
        ids = other_names if config.lyric_len else {"a.wav": (3, (2, 4)), "b/c.wav": (5, (1,))}
        windows.told = lambda *place, tell=tell, places=places: (places.append(place), tell(*place))[1]
        batch = windows.batch(0, 12)
        logits = forward(prior, batch).logits
        assert len({song for song, _ in places}) == 3 and len({first for _, first in places}) > 5
        for item, (song, first) in enumerate(places):
            path, one = store.songs[song].path, batch.part(slice(item, item + 1))
            codes = one.codes[0, config.lyric_len :].tolist()
            assert codes == store.codes(song, level)[first:][: config.window_len].tolist()
            artist, genres = ids.get(path, (0, (0,)))
            before, cond, start, encoded = told(
                prior,
                first,
                rate=RATE,
                unit=(8, 32, 128)[level],
                artist=artist,
                genres=genres,
                lyrics=lyric_tokens(texts[path], config.lyrics.vocabulary) if config.lyrics else (),
                song=round(store.songs[song].seconds * RATE),
            )
            assert one.codes[0, : config.lyric_len].tolist() == before
            cond = prior.conditioner(one.upper) if prior.conditioner else cond
            whole = prior(one.codes, cond, start, lyrics=encoded)[0, config.lyric_len :]
            torch.testing.assert_close(logits[item], whole, rtol=1e-4, atol=1e-4)


def test_a_student_of_a_given_model_samples_and_drafts_for_it(given, tmp_path):
    kind, folder, model, _ = given
    done(folder, "export", "--system", "student-18", "--out", str(tmp_path / "student"))
    student, teacher = (Jukebox.from_pretrained(each, "cpu", backend="eager") for each in (tmp_path / "student", model))
    assert [prior.depth for prior in student.config.priors] == [4, 4, 4] and student.names == teacher.names
    assert (tmp_path / "student" / "vqvae.safetensors").read_bytes() == (model / "vqvae.safetensors").read_bytes()
    lyrics = "la la" if kind in ("encoder", "before") else ""
    labels = None if kind == "plain" else Labels("some body", "waltz", lyrics, song_seconds=0.2)
    params = SamplingParams(0.07, seed=2, labels=labels)
    result = student.sample(params)
    assert result.audio.isfinite().all() and all(len(codes.unique()) > 4 for codes in result.codes)
    # Each level's own, FP16 of what was trained.
    trained = Work(folder, "tiny").prior("student-18", 2).half().state_dict()
    held = checkpoint.load_prior(tmp_path / "student", 2, dtype=torch.float16).state_dict()
    assert all(torch.equal(tensor.half(), trained[name]) for name, tensor in held.items())
    if native_library.missing() is None:
        plain = Jukebox.from_pretrained(model, "cpu", backend="native").sample(params)
        drafting = Jukebox.from_pretrained(model, "cpu", backend="native", draft=tmp_path / "student")
        assert all(torch.equal(*codes) for codes in zip(plain.codes, drafting.sample(params).codes, strict=True))


def test_labels_and_lyrics_stay_the_teachers_and_all_else_learns(given):
    kind, folder, model, _ = given
    work = Work(folder, "tiny")
    student, teacher = work.prior("student-18", 2), checkpoint.load_prior(model, 2)
    for name, tensor in student.state_dict().items():
        if name.startswith(("labels.", "lyric_encoder.")):
            assert torch.equal(tensor, teacher.state_dict()[name]), name
    first = work.prior("student-18-layers", 2).state_dict()
    assert any(name.startswith("layers.") for name in first)
    moved = {name for name, tensor in student.named_parameters() if not torch.equal(tensor, first[name])}
    # The presets for tests share embeddings.
    assert moved and all(name.startswith("layers.") for name in moved)
    assert kind != "encoder" or any("lyric_kv" in name for name in moved)


def test_what_is_not_distilled_is_the_teachers(given, tmp_path):
    _, folder, model, _ = given
    out, lean = tmp_path / "out", tmp_path / "lean"
    told = done(folder, "export", "--system", "student-18", "--level", "0", "--out", str(out))
    assert "level 2 of teacher-72, level 1 of teacher-72, level 0 of student-18" in told
    for name in ("prior_1.safetensors", "prior_2.safetensors"):
        assert (out / name).read_bytes() == (model / name).read_bytes()
    done(folder, "export", "--system", "student-18", "--level", "0", "--out", str(lean), "--base", str(model))
    assert {"config.json", "prior_0.safetensors"} == {path.name for path in lean.glob("[cpv]*")}
    assert checkpoint.shared_priors(model, lean) == [1, 2] and checkpoint.shared_priors(model, out) == []
    if native_library.missing() is None:
        # What both have drafts nothing.
        jukebox = Jukebox.from_pretrained(model, "cpu", backend="native", draft=lean)
        decoders = [jukebox.backend.build(jukebox.prior(level), 1) for level in range(3)]
        assert [type(decoder) for decoder in decoders] == [SpeculativeDecoder, NativeDecoder, NativeDecoder]
    config = checkpoint.load_config(lean)
    assert [prior.depth for prior in config.priors] == [4, 6, 8] and config == checkpoint.load_config(out)


def test_a_given_model_is_not_trained_and_is_the_folders_for_good(given, tmp_path, monkeypatch):
    kind, folder, model, songs = given
    for words in (("vqvae", "--audio", str(songs)), ("prior", "--system", "teacher-72")):
        assert "trained already: go on with" in str(command(folder, *words).exception)
    other = write_given(tmp_path / "other", kind, depth=12)
    assert "another --teacher" in str(command(folder, "eval", "--teacher", str(other)).exception)
    # Where it is now is told once, by whatever is made next.
    shutil.copytree(folder, tmp_path / "work")
    shutil.copytree(model, tmp_path / "moved")
    made_with = json.loads((tmp_path / "work" / "preset.json").read_text())
    made_with["teacher"]["folder"] = str(tmp_path / "gone")
    (tmp_path / "work" / "preset.json").write_text(json.dumps(made_with))
    assert "say where it is now, with --teacher" in str(command(tmp_path / "work", "eval").exception)
    encode = ("encode", "--audio", str(songs))
    done(tmp_path / "work", *encode, "--teacher", str(tmp_path / "moved"))
    assert "student-18" in done(tmp_path / "work", "eval", "--level", "2")
    path = tmp_path / "moved" / "prior_2.safetensors"
    path.write_bytes((other / "prior_2.safetensors").read_bytes())
    assert "is not the model that was distilled here" in str(command(tmp_path / "work", "eval").exception)
    shutil.rmtree(tmp_path / "moved")
    done(tmp_path / "fresh", "corpus", "--preset", "tiny")
    assert "begun without --teacher" in str(command(tmp_path / "fresh", "eval", "--teacher", str(model)).exception)


def test_every_system_can_be_a_given_models(given, tmp_path):
    kind, folder, model, _ = given
    work = tmp_path / "work"
    shutil.copytree(folder, work)
    assert ("labels of 4 songs" in done(work, "prior", "--system", "plain-18", "--level", "2")) == (kind != "plain")
    found = [json.loads(line) for line in done(work, "eval", "--level", "2").splitlines() if line.startswith("{")]
    assert [row["system"] for row in found] == ["teacher-72", "plain-18", "student-18-layers", "student-18"]
    assert [row["depth"] for row in found] == [8, 4, 4, 4] and all(row["kl"] > 0 for row in found[1:])
    told = card(Work(work, "tiny"))
    assert f"`{model.name}`" in told and "--teacher MODEL" in told and "student-18-layers" in told


def test_labels_that_the_model_does_not_know_are_refused_with_the_song(tmp_path):
    model, songs = write_given(tmp_path / "model", "before"), write_songs(tmp_path / "songs")
    done(tmp_path / "w", "encode", "--teacher", str(model), "--preset", "tiny", "--audio", str(songs), *SETTINGS)
    text = (songs / "labels.csv").read_text()
    refusals = (
        ('"Some Body"', '"nobdy"', "a.wav in .* artist 'nobdy' is not one that the model knows; close to it: nobody"),
        ('"waltz"', '"77"', "b/c.wav in .* genre 77 does not exist"),
    )
    for before, after, reason in refusals:
        (songs / "labels.csv").write_text(text.replace(before, after))
        done(tmp_path / "w", "encode", "--audio", str(songs))
        with pytest.raises(ValueError, match=reason):
            Work(tmp_path / "w", "tiny").windows(2)
    # A run goes on with the labels that it was begun with.
    (songs / "labels.csv").write_text(text)
    done(tmp_path / "w", "encode", "--audio", str(songs))
    done(tmp_path / "w", "distill", "--system", "student-18-layers", "--level", "2")
    (songs / "labels.csv").write_text(text.replace('"waltz"', '"slow dance"'))
    done(tmp_path / "w", "encode", "--audio", str(songs))
    (tmp_path / "w" / "student-18-layers" / "level_2" / "figures.json").unlink()
    ended = command(tmp_path / "w", "distill", "--system", "student-18-layers", "--level", "2")
    assert "was begun with labels" in str(ended.exception)


def test_the_teacher_is_not_overwritten(given, tmp_path):
    _, folder, model, _ = given
    before = [path.read_bytes() for path in sorted(model.iterdir())]
    (tmp_path / "link").symlink_to(model)
    for out in (model, tmp_path / "link"):
        ended = command(folder, "export", "--system", "student-18", "--out", str(out), "--overwrite")
        assert "holds the teacher, which is not to be overwritten" in str(ended.exception)
    assert [path.read_bytes() for path in sorted(model.iterdir())] == before
    # Nor what it has in its base.
    checkpoint.save_config(tmp_path / "lean", checkpoint.load_config(model), str(model))
    assert GivenTeacher(tmp_path / "lean").folders == {tmp_path / "lean", model}


def test_names_of_a_checkpoint_that_is_overwritten_go(given, tmp_path):
    kind, folder, model, _ = given
    labelled = write_given(tmp_path / "out", "labels")
    done(folder, "export", "--system", "student-18", "--out", str(labelled), "--overwrite")
    for level in range(3):
        assert checkpoint.load_names(labelled, level) == checkpoint.load_names(model, level)
    assert kind != "plain" or not list(labelled.glob("names_*"))


def test_settings_and_teacher_may_change_until_something_is_distilled(tmp_path):
    model, songs, work = write_given(tmp_path / "model", "labels"), write_songs(tmp_path / "songs"), tmp_path / "work"
    encode = ("encode", "--teacher", str(model), "--preset", "tiny", "--audio", str(songs))
    (model / "prior_0.safetensors").rename(tmp_path / "prior")
    assert "teacher is not complete: " in str(command(work, *encode).exception) and not work.exists()
    (tmp_path / "prior").rename(model / "prior_0.safetensors")
    names = [path.rename(tmp_path / path.name) for path in model.glob("names_*")]
    done(work, *encode)
    first = ("distill", "--system", "student-18-layers", "--level", "2", *SETTINGS)
    # It says what to do; that can be done.
    assert "convert it with --names" in str(command(work, *first).exception)
    for path in names:
        path.rename(model / path.name)
    assert "tell where it is now (--teacher)" in str(command(work, *first).exception)
    assert '"depth": 4' in done(work, *first, "--teacher", str(model))
    ended = command(work, "distill", "--system", "student-18", "--set", "depths.18=3")
    assert "was begun with depths.18 4" in str(ended.exception)


def test_what_is_given_is_not_planned(given):
    _, folder, model, _ = given
    for words in (("vqvae",), ("prior", "--system", "teacher-72")):
        assert f"level 1: that of {model}\n" in done(folder, *words, "--level", "1", "--dry-run")
    assert "no model 'demo-7': it is neither" in str(command(folder, "eval", "--teacher", "demo-7").exception)


def test_a_name_that_some_levels_lack_is_told_once(tmp_path, caplog):
    model, songs = write_given(tmp_path / "model", "before"), write_songs(tmp_path / "songs")
    (model / "names_0.json").write_text(json.dumps({"artists": {}, "genres": {"slow": 2, "dance": 4}}))
    rows = [f"{name},Some Body,slow dance,la {name}" for name, *_ in SONGS]
    (songs / "labels.csv").write_text("\n".join(["file,artist,genre,lyrics", *rows]))
    done(tmp_path / "w", "encode", "--teacher", str(model), "--preset", "tiny", "--audio", str(songs))
    Work(tmp_path / "w", "tiny").windows(2)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1 and "level 0 artist 'Some Body' is not one that the model knows" in told[0]


def test_a_given_models_sizes_are_not_set(tmp_path):
    teacher = GivenTeacher(write_given(tmp_path / "model", "plain"))
    base = teacher.fitted(PRESETS["tiny"])
    assert base.config == teacher.config and base.depths == {24: 6, 18: 3}
    # Of any length of a code.
    teacher.config = dataclasses.replace(
        base.config, vqvae=dataclasses.replace(base.config.vqvae, strides=(6, *base.config.vqvae.strides[1:]))
    )
    assert changed(teacher.fitted(PRESETS["tiny"]), ["prior.batch=3"]).check() is None
    teacher.config = base.config
    with pytest.raises(ValueError, match="--set config: the sizes are those of"):
        Work(tmp_path / "w", "tiny", settings=changed(base, ["config.priors.0.width=64"]), teacher=teacher)
    told = done(tmp_path / "w", "distill", "--system", "student-18", "--dry-run", "--teacher", str(tmp_path / "model"))
    assert "preset paper" in told and not (tmp_path / "w").exists()


def test_copies_of_layers_learn_whatever_else_is_shared(tmp_path):
    model, songs = write_given(tmp_path / "model", "plain"), write_songs(tmp_path / "songs")
    teacher = GivenTeacher(model)
    wanted = ["depths.18=4", "distillation.copy_layers=true", "distillation.share_embeddings=false"]
    settings = changed(teacher.fitted(PRESETS["tiny"]), wanted)
    work = Work(tmp_path / "w", "tiny", settings=settings, teacher=teacher)
    work.encode(songs, 0.25)
    work.train_system("student-18-layers", 2)
    student, theirs = work.prior("student-18-layers", 2), checkpoint.load_prior(model, 2)
    for layer in student.layers:
        weights = layer.qkv.weight
        assert all(not torch.equal(weights, other.qkv.weight) for other in theirs.layers)
