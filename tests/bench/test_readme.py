"""The README's tables are those of the committed results."""

import json

import pytest
from fastjukebox.bench import harness, readme
from fastjukebox.bench.tables import markdown, tables

START, END = "<!-- bench:int8 -->", "<!-- /bench:int8 -->"


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    record = {"bench": "int8", "row": "demo level 2", "level": 2, "bits_fp32": 4.5, "bits_lost": 0.0004}
    place = {"same_likeliest_code": 0.98, "device": "A CPU", "cores": 2, "threads": 2, "torch": "2.0", "time": "2026"}
    (folder / "int8.jsonl").write_text(json.dumps(record | place) + "\n")
    return folder


def test_readme_is_current(capsys):
    assert readme.main(["--check"]) == 0, capsys.readouterr().out
    text = (harness.ROOT / "README.md").read_text()
    assert all(f"<!-- bench:{name} -->" in text for name in ("peers", "decode", "int8", "table1"))


def test_what_stands_between_markers_is_replaced_and_nothing_else(results):
    text = f"before\n{START}\nold\n{END}\nbetween\n<!-- bench:decode -->\n<!-- /bench:decode -->\nafter\n"
    new = readme.render(text, results)
    table = markdown(tables(results)["int8"])
    assert "| demo level 2 | 4.5000 | +0.0004 | 98.0 % |" in table
    assert new.startswith(f"before\n{START}\n\n{table}\n{END}\nbetween\n") and new.endswith(
        "/bench:decode -->\nafter\n"
    )
    assert "**: not yet measured\n" in new
    assert readme.render(new, results) == new
    assert readme.render("no marker\n", results) == "no marker\n"


def test_gpu_tables(results):
    text = "<!-- bench:int8@A-GPU -->\n<!-- /bench:int8@A-GPU -->\n"
    assert "not yet measured" in readme.render(text, results)
    (results / "A-GPU.json").write_text((results / "int8.jsonl").read_text())
    assert "4.5000" not in readme.render(text, results)
    harness.append(results / "A-GPU.json", {"bench": "gpu", "row": "tests", "status": "passed"})
    assert "4.5000" in readme.render(text, results)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"a\n{START}\n", "bench:int8 has no end"),
        (f"a\n{END}\n", "line 2: /bench:int8 ends what did not begin"),
        (f"{START}\n<!-- bench:decode -->\n", "line 2: bench:decode begins before /bench:int8 ends"),
        (f"{START}\n<!-- /bench:decode -->\n", "line 2: /bench:decode ends what did not begin"),
        ("<!-- bench:speed -->\n<!-- /bench:speed -->\n", "no table 'speed'; there are peers, decode"),
    ],
)
def test_markers_that_do_not_pair_or_name_nothing(results, text, message, tmp_path, capsys):
    with pytest.raises(ValueError, match=message):
        readme.render(text, results)
    file = tmp_path / "README.md"
    file.write_text(text)
    assert readme.main(["--readme", str(file), "--results", str(results)]) == 2
    assert capsys.readouterr().out.count("\n") == 1 and file.read_text() == text


def test_check_writes_nothing_and_fails_until_written(results, tmp_path, capsys):
    file = tmp_path / "README.md"
    file.write_text(f"{START}\n{END}\n")
    words = ["--readme", str(file), "--results", str(results)]
    assert readme.main([*words, "--check"]) == 1
    assert file.read_text() == f"{START}\n{END}\n"
    assert capsys.readouterr().out == "README.md is not what the results say: run `python bench readme`\n"
    assert readme.main(words) == 0 and readme.main([*words, "--check"]) == 0
    # A newer record: the README is not current any more.
    newer = json.loads((results / "int8.jsonl").read_text()) | {"bits_lost": 0.1, "time": "2027"}
    harness.append(results / "int8.jsonl", newer)
    assert readme.main([*words, "--check"]) == 1
