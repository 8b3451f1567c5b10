"""The commands on the pages can follow each other in one folder."""

import re
import shlex

import pytest
from places import ROOT, blocks

from capsjax import config as configs
from capsjax.storage.workdir import default_path
from capsjax.training.command_line import parse

PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def trainings(page):
    """The folder and the config of each run that a page trains by a recipe of ours."""
    for line in "".join(blocks(page, "bash")).splitlines():
        command = r"(?:.*[/ ])?python -m (capsjax\.train .*(?:capsjax:|experiments/).*)"
        words = re.fullmatch(command, line)
        if words is not None:
            one = parse(shlex.split(words[1], comments=True), "")
            yield one.workdir or str(default_path(one.config)), one.config


@pytest.mark.parametrize("page", PAGES)
def test_no_two_commands_of_a_page_and_the_readme_meet_in_a_folder(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    there = dict(trainings("../README.md"))
    assert len(there) == 2
    for folder, config in trainings(page):
        before = there.setdefault(folder, config)
        assert configs.to_dict(before) == configs.to_dict(config), folder
