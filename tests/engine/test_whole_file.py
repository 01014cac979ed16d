"""Files that appear whole or not at all."""

import os
import threading

import pytest
from fastjukebox.engine.whole_file import whole_file


def test_a_file_appears_when_it_is_done(tmp_path):
    path = tmp_path / "file"
    for content in ("old", "new"):
        with whole_file(path) as part:
            part.write_text(content)
            assert not path.exists() or path.read_text() == "old"
        assert path.read_text() == content and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("written", [True, False])
def test_what_fails_leaves_the_old_content_alone(tmp_path, written):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), whole_file(path) as part:
        if written:
            part.write_text("half of")
        raise ZeroDivisionError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_what_cannot_take_the_place_is_removed(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError), whole_file(tmp_path / "file") as part:
        part.write_text("new")
    assert os.listdir(tmp_path) == ["file"] and not os.listdir(tmp_path / "file")


def test_what_a_killed_process_left_is_written_over(tmp_path):
    with whole_file(tmp_path / "file") as part:
        left = part.name
        part.write_text("new")
    (tmp_path / left).write_text("a longer half of an older one")
    with whole_file(tmp_path / "file") as part:
        part.write_text("newer")
    assert (tmp_path / "file").read_text() == "newer" and os.listdir(tmp_path) == ["file"]


def test_of_several_writers_each_file_is_whole(tmp_path):
    path, contents = tmp_path / "file", [letter * 10_000 for letter in "abcd"]
    begin, seen, done = threading.Barrier(len(contents) + 1), list[str](), list[str]()

    def write(content):
        begin.wait()
        for _ in range(50):
            with whole_file(path) as part, part.open("w") as file:
                for start in range(0, len(content), 1000):
                    file.write(content[start : start + 1000])
                    file.flush()
        done.append(content)

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    begin.wait()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            seen.append(path.read_text())
    for writer in writers:
        writer.join()
    assert sorted(done) == contents
    assert set(seen) <= set(contents) and path.read_text() in contents and os.listdir(tmp_path) == ["file"]
