"""What a dry run tells of the paper's sizes, against counts of every tensor of a step."""

import re

import pytest
from fastjukebox.distill.dry_run import describe
from fastjukebox.distill.presets import PRESETS
from fastjukebox.distill.settings import changed
from fastjukebox.distill.work import Work


@pytest.mark.parametrize(
    ("name", "level", "counted"),
    [
        ("teacher-72", 2, 77.8),
        ("teacher-72", 1, 102.7),
        ("student-24-layers", 2, 70.2),
        ("student-24-layers", 1, 95.7),
        ("student-18-layers", 2, 54.4),
        ("student-18-layers", 1, 76.4),
        ("student-24", 1, 50.7),
        ("student-18", 1, 43.5),
        ("plain-18", 0, 38.8),
        ("vqvae", 0, 39.8),
        ("vqvae", 2, 14.0),
    ],
)
def test_memory_is_about_what_was_counted(tmp_path, name, level, counted):
    settings = changed(PRESETS["paper"], ["prior.micro_batch=null"])
    line = describe(Work(tmp_path, "paper", settings=settings), name, level)[0]
    found = re.search(r"about ([0-9.]+) GB for weights and optimizer and ([0-9.]+) GB", line)
    assert found and sum(map(float, found.groups())) == pytest.approx(counted, rel=0.2)


def test_steps_of_a_new_folder_are_those_of_the_corpus(tmp_path):
    # 285 songs of 180 s, 344.5 codes a second: 180 batches of 16 windows of 6144 codes, 70 times.
    assert "about 12600 steps, an epoch is about 180" in describe(Work(tmp_path, "paper"), "teacher-72", 2)[0]
