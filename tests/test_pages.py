"""The code on the README and the pages of docs/ runs, and its commands fit together."""

import re
import shlex
import shutil
import subprocess

import numpy as np
import page_code
import pytest
from marks import first_of
from page_code import PAGES
from PIL import Image
from places import ROOT, TESTS, blocks

from capsjax import config as configs
from capsjax.data import load
from capsjax.storage.workdir import default_path
from capsjax.training.command_line import parse

# What a page may show beside Python and bash, which run.
OTHER_LANGUAGES = {"bibtex", "csv", "js", "text", "yaml"}
WITH_CODE = [page for page in PAGES if page_code.code(page_code.read(page))]
MORE = {*WITH_CODE} - {"README.md"}
# They take 10 to 50 seconds each.
BY_HAND = {
    f"docs/{page}.md"
    for page in (
        *("augmentation", "data-sets", "fine-tuning", "index", "notebooks"),
        *("stacking", "training", "your-code", "your-experiment"),
    )
}


@pytest.mark.parametrize("page", PAGES)
def test_each_block_has_a_language_and_is_found(page):
    text = (ROOT / page).read_text()
    fences = re.findall(r"^ *(?:```|~~~+)(.*)$", text, re.MULTILINE)
    assert len(fences) % 2 == 0
    languages, ends = fences[::2], fences[1::2]
    assert not any(ends), ends
    assert {*languages} <= {"python", "bash", *OTHER_LANGUAGES}, languages
    shown = [
        one
        for one in page_code.code(page_code.read(page))
        if text[one.start : one.end].lstrip().startswith("`")
    ]
    assert len(shown) == sum(one in ("python", "bash") for one in languages)


@pytest.mark.parametrize("page", WITH_CODE)
def test_a_block_that_is_not_run_has_a_reason(page):
    """A reason that names a test: its file takes this page's blocks."""
    for action, reason in page_code.skips(page_code.read(page)):
        assert action == "end" or re.fullmatch(r'"[^"]{6,}"', reason or ""), reason
        for name in re.findall(r"\w+/[\w/]+\.py", reason or ""):
            assert (
                f'"{page.removeprefix("docs/")}"' in (TESTS.parent / name).read_text()
            )


@pytest.mark.parametrize("page", WITH_CODE)
def test_each_block_can_be_read(page):
    for example in page_code.code(page_code.read(page)):
        if example.region.evaluator is page_code.run_python:
            compile(example.parsed, page, "exec")
        else:
            subprocess.run(["bash", "-n", "-c", example.parsed], check=True)


def belongings(folder):
    """What a reader has: pictures, a folder of them to train on, and a few digits."""
    splits = {"train": 100, "test": 50}
    digits = {split: load("mnist", split) for split in splits}
    np.savez(
        folder / "few.npz",
        **{f"x_{split}": digits[split].image[:n] for split, n in splits.items()},
        **{f"y_{split}": digits[split].label[:n] for split, n in splits.items()},
        class_names=digits["test"].class_names,
    )
    rng = np.random.default_rng(0)
    drawing = np.full((60, 50), 255, np.uint8)
    drawing[10:50, 22:28] = 0
    Image.fromarray(drawing).save(folder / "drawing.png")
    for name in ("photo.jpg", *(f"photos/{n % 2}/{n}.jpg" for n in range(60))):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(path)


@pytest.fixture(scope="module")
def after_readme(tmp_path_factory):
    """The folder in which the README was followed, and the commands that ran there."""
    folder = tmp_path_factory.mktemp("readme")
    belongings(folder)
    with pytest.MonkeyPatch.context() as monkeypatch:
        return folder, page_code.run("README.md", folder, monkeypatch)


@pytest.mark.slow
def test_the_code_of_the_readme_runs(after_readme):
    folder, _ = after_readme
    assert (folder / "runs" / "mnist-smoke-seed0" / "result.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("page", first_of(sorted(MORE - BY_HAND), sorted(MORE)))
def test_the_code_of_a_page_runs(page, after_readme, tmp_path, monkeypatch):
    """Each page goes on from where the README ends."""
    folder, done = after_readme
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True, symlinks=True)
    page_code.run(page, tmp_path, monkeypatch, done)


def trainings(page):
    """The folder and the config of each run that a page trains by a recipe of ours."""
    for line in "".join(blocks(page, "bash")).splitlines():
        start = r"(?:.*[/ ])?(?:python -m capsjax\.|capsjax )train"
        words = re.fullmatch(rf"{start} (.*(?:capsjax:|experiments/).*)", line)
        if words is not None:
            argv = ["capsjax.train", *shlex.split(words[1], comments=True)]
            one = parse(argv, "")
            yield one.workdir or str(default_path(one.config)), one.config


@pytest.mark.parametrize("page", sorted(MORE))
def test_no_two_commands_of_a_page_and_the_readme_meet_in_a_folder(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    there = dict(trainings("../README.md"))
    assert len(there) == 2
    for folder, config in trainings(f"../{page}"):
        before = there.setdefault(folder, config)
        assert configs.to_dict(before) == configs.to_dict(config), folder
