"""What may import what, and what an import must not do."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

import capsjax

PACKAGE = pathlib.Path(capsjax.__file__).parent

# Lower layers know nothing of the higher ones.
ORDER = [
    {"ops", "convolution_forms", "parallel", "platforms"},
    {"confusion", "console", "paths", "recipes", "hosts", "interrupt"},
    {"convolution", "routings", "losses"},
    {"initializers", "config", "data", "layers", "plots"},
    {"models"},
    {"measure"},
    {"workdir", "provenance", "history"},
    {"metrics", "flags", "feed"},
    {"checkpoint", "compilation"},
    {"run"},
    {"figures"},
    {"evaluate"},
    {"step"},
    {"memory"},
    {"task"},
    {"train", "predict", "report"},
]
OWNERS = {
    "flax": {"layers", "models"},
    "optax": {"step"},
    "orbax": {"checkpoint"},
    "tensorflow_datasets": {"data"},
    "tensorboardX": {"metrics"},
    "matplotlib": {"plots"},
    "tensorflow": set(),
}


def imports():
    """Pairs (concept, imported name) over all files; a concept is a file or folder."""
    for path in PACKAGE.rglob("*.py"):
        relative = path.relative_to(PACKAGE)
        concept = relative.parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                yield concept, name


def test_arrows_point_one_way():
    level = {concept: n for n, concepts in enumerate(ORDER) for concept in concepts}
    for concept, name in imports():
        package, imported, *_ = [*name.split("."), ""]
        if package != "capsjax" or "__init__" in (concept, imported):
            continue
        assert imported in level, f"{imported} has no place in ORDER"
        assert level[imported] <= level[concept], f"{concept} imports {name}"


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_is_known_only_where_it_belongs(library):
    for concept, name in imports():
        if name.split(".")[0] == library:
            assert concept in OWNERS[library], f"{concept} imports {name}"


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
        assert getattr(capsjax, name).__doc__


@pytest.mark.parametrize("name", ["other-implementations", "reliability"])
def test_the_tests_that_the_documents_name_are_there(name):
    tests = pathlib.Path(__file__).parent
    text = (tests.parent / "docs" / f"{name}.md").read_text()
    for file, test in re.findall(r"`(?:test_)?(\w+)(?:\.py)?::(?:test_)?(\w+)`", text):
        if (file, test) != ("file", "test"):
            assert f"def test_{test}(" in (tests / f"test_{file}.py").read_text()
    for file in re.findall(r"`(test_\w+\.py)`", text):
        assert (tests / file).exists(), file
