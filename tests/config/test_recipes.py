"""Recipes by name, in a checkout and in an installed package."""

import shutil

import pytest
from places import ROOT

from capsjax.config import recipes
from capsjax.training.command_line import UsageError
from capsjax.training.command_line import parse as parse_flags

EXPERIMENTS = ROOT / "experiments"


def parse(*arguments):
    return parse_flags(["train", *arguments], "about").config


@pytest.mark.parametrize(
    "words",
    [["--config=capsjax:mnist:smoke"], ["--config", "capsjax:mnist:smoke"]],
)
def test_a_recipe_that_comes_with_capsjax_is_found_anywhere(
    words, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config = parse(*words, "--config.seed=3")
    assert (config.experiment, config.variant, config.seed) == ("mnist", "smoke", 3)
    assert config == parse(f"--config={EXPERIMENTS}/mnist.py:smoke", "--config.seed=3")


def test_all_of_them_are_there():
    names = {path.stem for path in EXPERIMENTS.glob("*.py")}
    assert {"mnist", "folder"} <= names == set(recipes.packaged_recipes())


def test_in_a_wheel_they_are_within_the_package(tmp_path, monkeypatch):
    package = tmp_path / "capsjax"
    package.mkdir()
    shutil.copytree(EXPERIMENTS, package / "experiments")
    monkeypatch.setattr(recipes, "__file__", str(package / "training" / "recipes.py"))
    path = str(package / "experiments" / "svhn.py")
    assert recipes.with_paths(["train", "--config", "capsjax:svhn"])[2] == path


def test_an_unknown_recipe_is_refused_with_the_known_ones():
    with pytest.raises(UsageError) as error:
        parse("--config=capsjax:mnost")
    message = str(error.value)
    assert message.startswith(
        "capsjax:mnost is no recipe: did you mean capsjax:mnist? "
    )
    assert "folder, mnist, multimnist" in message
    with pytest.raises(UsageError, match="unknown variant 'nothing'"):
        parse("--config=capsjax:mnist:nothing")


def test_other_files_are_meant_as_they_are_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for same in ("experiments/mnist.py", "capsjax.py:smoke", "./capsjax:x", "capsjax"):
        assert recipes.with_paths(["train", "--config", same])[2] == same
    home = recipes.with_paths(["train", "--config=~/my.py:a:b", "--workdir", "x"])
    assert home == ["train", f"--config={tmp_path}/my.py:a:b", "--workdir", "x"]
