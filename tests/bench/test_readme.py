"""The tables of the README and of RESULTS.md are those of the committed results."""

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
    shown = {"README.md": ("table1-short", "peers-short"), "bench/RESULTS.md": ("peers", "decode", "int8", "table1")}
    for name, tables_there in shown.items():
        text = (harness.ROOT / name).read_text()
        assert all(f"<!-- bench:{table} -->" in text for table in tables_there)


def test_short_tables_have_the_figures_of_the_whole_ones():
    found = tables(harness.ROOT / "bench" / "results", short=True)
    for row in found["peers-short"].rows:
        whole = {cells[1]: cells for cells in found["peers"].rows if cells[0].startswith(f"{row[0]}, ")}
        names = ("`transformers`", "plain PyTorch, growing cache", "ours, native", "ours, native, int8 weights")
        assert row[1:5] == tuple(whole[name][2].split()[0] for name in names)
        assert row[5:] == tuple(whole[name][4].split()[0] for name in names[2:])
    for row in found["table1-short"].rows:
        (whole,) = (
            cells
            for cells in found["table1"].rows
            if cells[:2] == (row[0].replace(" layers", ""), "60 s") and cells[2].split()[0] == row[1]
        )
        assert row[2] == whole[3] and row[3] == whole[-1].split(" (")[0] and row[4] == whole[4].split()[0] + "x"


def test_several_files(results, tmp_path, capsys):
    files = [tmp_path / "A.md", tmp_path / "B.md"]
    for file in files:
        file.write_text(f"{START}\n{END}\n")
    words = ["--readme", *map(str, files), "--results", str(results)]
    assert readme.main([*words, "--check"]) == 1 and capsys.readouterr().out.count("\n") == 2
    assert readme.main(words) == 0 and readme.main([*words, "--check"]) == 0
    assert files[0].read_text() == files[1].read_text() != f"{START}\n{END}\n"


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
