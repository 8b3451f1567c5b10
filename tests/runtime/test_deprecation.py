"""What is deprecated warns, and goes in the version that it names."""

import ast
import importlib.metadata
import pathlib
import warnings

import pytest
from packaging.version import Version

import capsjax
from capsjax.runtime.deprecation import deprecated


@deprecated(use="capsjax.squash", removed_in="0.4")
def crush(vector):
    return 2 * vector


@deprecated(use="capsjax.DenseCaps", removed_in="0.4")
class Caps:
    def __init__(self, size):
        self.size = size


def overdue(code, version):
    """The versions that have come, of those in which something in the code goes."""
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    marks = [call for call in calls if ast.unparse(call.func).endswith("deprecated")]
    named = [{word.arg: word.value for word in call.keywords} for call in marks]
    last = [ast.literal_eval(words["removed_in"]) for words in named]
    return [one for one in last if Version(one) <= Version(version)]


def test_it_warns_with_the_new_name_and_the_version_at_the_line_of_its_use():
    message = r"^crush goes in capsjax 0\.4: use capsjax\.squash$"
    with pytest.warns(DeprecationWarning, match=message) as caught:
        assert crush(3) == 6
    assert caught[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="use capsjax.DenseCaps"):
        assert Caps(3).size == 3


def test_a_line_that_runs_often_warns_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        assert [crush(n) for n in range(3)] == [0, 2, 4]
    assert len(caught) == 1


def test_nothing_outlives_the_version_that_it_goes_in():
    code = pathlib.Path(__file__).read_text("utf-8")
    assert overdue(code, "0.3.9") == []
    assert overdue(code, "0.4") == overdue(code, "1.0") == ["0.4", "0.4"]
    version = importlib.metadata.version("capsjax")
    for path in pathlib.Path(capsjax.__file__).parent.rglob("*.py"):
        assert overdue(path.read_text("utf-8"), version) == [], path
