"""What may import what, and what an import must not do."""

import ast
import inspect
import pathlib
import re
import subprocess
import sys

import pytest
from places import TESTS

import capsjax

PACKAGE = pathlib.Path(capsjax.__file__).parent

# Each line may import the lines above it, and from its own what is further left.
LINES = """
bounds ops losses runtime
data
kernels votes
routings
initializers layers diagnostics
models
config
storage
training
analysis exporting
explorer
train evaluate predict report explore export
__main__
"""
PLACES = {
    name: (line, column)
    for line, names in enumerate(LINES.strip().splitlines())
    for column, name in enumerate(names.split())
}
# A method that people look for on the object that they hold.
UPWARDS = {("storage.run", "capsjax.explorer.page.make_page")}
DOORS = LINES.split("\n")[-3].split()
OWNERS = {
    "flax": {"layers", "models", "config"},
    "grain": {"data.workers"},
    "optax": {"training", "config.optimizers"},
    "orbax": {"storage"},
    "safetensors": {"storage"},
    "tensorflow_datasets": {"data.readers"},
    "tensorboardX": {"storage"},
    "matplotlib": {"analysis.plots.canvas"},
    "onnx": {"exporting"},
    "onnxruntime": {"exporting"},
    "tensorflow": set(),
}


def imports():
    """Pairs (importing module, imported name), both dotted and within the package."""
    for path in PACKAGE.rglob("*.py"):
        importing = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                yield importing, name


def test_arrows_point_one_way():
    for importing, name in imports():
        package, imported, *_ = [*name.split("."), ""]
        room = importing.split(".")[0]
        if package != "capsjax" or room in (imported, "__init__"):
            continue
        if (importing, name) in UPWARDS:
            continue
        assert imported in PLACES, f"{imported} has no place in LINES"
        assert PLACES[imported] < PLACES[room], f"{importing} imports {name}"
        assert imported not in DOORS, f"{importing} imports {name}"


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_is_known_only_where_it_belongs(library):
    for importing, name in imports():
        if name.split(".")[0] == library:
            owners = OWNERS[library]
            is_owner = any(f"{importing}.".startswith(f"{one}.") for one in owners)
            assert is_owner, f"{importing} imports {name}"


def run(code):
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_capsjax_starts_no_backend_and_loads_nothing_in_vain():
    run(
        "import sys, capsjax, capsjax.train, capsjax.layers, capsjax.data\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
        "for name in ('tensorflow', 'tensorflow_datasets', 'matplotlib', 'PIL',\n"
        "             'tensorboardX', 'requests'):\n"
        "    assert name not in sys.modules, name\n"
    )


def test_the_functions_need_no_flax():
    run("import sys, capsjax; assert 'flax' not in sys.modules")


def test_every_public_name_is_there_and_documented():
    for name in capsjax.__all__:
        value = getattr(capsjax, name)
        # A dict or a text has the docstring of its type.
        is_plain = not (inspect.isclass(value) or inspect.isroutine(value))
        assert (name in capsjax.__doc__) if is_plain else value.__doc__, name


@pytest.mark.parametrize("name", ["other-implementations", "reliability"])
def test_the_tests_that_the_documents_name_are_there(name):
    tests = TESTS
    text = (tests.parent / "docs" / f"{name}.md").read_text()
    for file, test in re.findall(r"`(?:test_)?(\w+)(?:\.py)?::(?:test_)?(\w+)`", text):
        if (file, test) != ("file", "test"):
            (path,) = tests.rglob(f"test_{file}.py")
            assert f"def test_{test}(" in path.read_text()
    for file in re.findall(r"`(test_\w+\.py)`", text):
        assert [*tests.rglob(file)], file


def test_the_walk_of_one_image_names_twelve_files_and_functions_that_are_there():
    text = (TESTS.parent / "docs" / "one-image.md").read_text()
    rows = re.findall(r"^\| \d+ \| `([\w/]+\.py)` \| `(\w+)` \|", text, re.M)
    assert len({file for file, _ in rows}) == len(rows) == 12
    for file, function in rows:
        assert f"def {function}(" in (PACKAGE / file).read_text(), file
