"""A ``~`` that the shell leaves alone, wherever a user names a path."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from capsjax import load_run
from capsjax.data import DatasetError, load
from capsjax.data.images import read_image
from capsjax.data.readers.tfds import data_folder
from capsjax.runtime.paths import cache_folder, exists, expanded
from capsjax.storage.files import WorkdirError
from capsjax.storage.workdir import Workdir


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_only_a_leading_tilde_is_the_home_folder(home):
    assert expanded("~/a") == home / "a"
    assert expanded("~root/a") == pathlib.Path("/root/a")
    for same in ("a/~/b", "~nobody-of-this-name/a", "./~", "/abs", "$HOME/a"):
        assert expanded(same) == pathlib.Path(same)


def test_a_tilde_without_a_home_folder_is_refused(monkeypatch):
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # No such user.
    with pytest.raises(FileNotFoundError, match=r"no home folder for ~/a: .* \./~/a"):
        expanded("~/a")


def test_an_empty_path_is_not_the_current_folder(home):
    with pytest.raises(FileNotFoundError, match="a path is empty: write"):
        expanded("")
    assert expanded(".") == expanded(pathlib.Path()) == pathlib.Path()


def test_run_folders(home):
    assert Workdir("~/run").path == home / "run"
    with pytest.raises(WorkdirError, match=f"^{home}/run holds no run"):
        load_run("~/run")


def test_data(home, monkeypatch):
    with pytest.raises(DatasetError, match=f"{home}/photos"):
        load("image_folder", path="~/photos", image_size=8)
    with pytest.raises(DatasetError, match=f"{home}/idx"):
        load("~/idx")
    assert data_folder("~/sets") == home / "sets"
    monkeypatch.setenv("CAPSJAX_DATA_DIR", "~/variable")
    assert data_folder() == home / "variable"


def test_the_cache(home, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == home / ".cache" / "capsjax"
    monkeypatch.setenv("XDG_CACHE_HOME", "~/elsewhere")
    assert cache_folder() == home / "elsewhere" / "capsjax"


def test_images(home):
    Image.new("L", (3, 3), 7).save(home / "a.png")
    assert np.asarray(read_image("~/a.png")).max() == 7


def test_a_place_that_the_system_does_not_know_of_is_not_taken_for_empty(tmp_path):
    (tmp_path / "file").touch()
    assert exists(tmp_path / "file")
    assert not exists(tmp_path / "none")
    assert not exists(tmp_path / "file" / "below")
    assert not exists("a\0b")
    with pytest.raises(OSError, match="name too long"):
        exists(tmp_path / ("x" * 5000))
