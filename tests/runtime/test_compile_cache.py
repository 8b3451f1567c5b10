"""The cache of compiled programs, in subprocesses: its setting is the process's."""

import os
import pathlib
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
from marks import variants

from capsjax.runtime import compile_cache

CODE = """
import jax
from capsjax.runtime.compile_cache import keep_compiled_programs
keep_compiled_programs()
print(jax.config.jax_compilation_cache_dir)
"""


def cache_folder(**environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip(), done.stderr


def test_programs_are_kept_in_the_users_cache_folder(tmp_path):
    folder, _ = cache_folder(XDG_CACHE_HOME=str(tmp_path))
    assert folder.startswith(str(tmp_path / "capsjax" / "compiled" / "jaxlib-"))
    assert os.path.isdir(folder)


def test_the_users_own_setting_stays(tmp_path):
    assert cache_folder(JAX_COMPILATION_CACHE_DIR="/mine")[0] == "/mine"
    off, _ = cache_folder(
        JAX_ENABLE_COMPILATION_CACHE="false", XDG_CACHE_HOME=str(tmp_path)
    )
    assert off == "None"
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path):
    (tmp_path / "capsjax").write_text("not a folder")
    folder, warning = cache_folder(XDG_CACHE_HOME=str(tmp_path))
    assert folder == "None"
    where = tmp_path / "capsjax" / "compiled"
    what = f"compiled programs are not kept in {where}"
    assert warning.startswith(f"warning: {what}")
    assert "Not a directory" in warning


COMPILE = """
import sys
import jax, jax.numpy as jnp
from capsjax.runtime.compile_cache import keep_compiled_programs
keep_compiled_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
@jax.jit
def twice(x):
    return 2 * x
print(twice(jnp.float32(21)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "damage",
    ["truncated", *variants("emptied", "garbage")],
)
def test_a_damaged_program_is_replaced(tmp_path, damage):
    """A process that is killed while it writes a program leaves a damaged one."""

    def run():
        kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
        return subprocess.run(
            [sys.executable, "-c", COMPILE],
            env={**kept, "XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=True,
        ).stderr.splitlines()

    assert run() == ["42.0"]
    (entry,) = tmp_path.rglob("jit_twice-*-cache")
    whole = entry.read_bytes()
    damaged = {
        "truncated": whole[: len(whole) // 2],
        "emptied": b"",
        "garbage": b"\x00garbage" * 100,
    }[damage]
    entry.write_bytes(damaged)
    warning, answer = run()
    assert warning.startswith("warning: a damaged compiled program, jit_twice, is made")
    assert answer == "42.0"
    assert run() == ["42.0"]
    assert entry.read_bytes() != damaged


def test_a_machine_without_cpuinfo_has_a_name(monkeypatch):
    before = compile_cache._machine()
    no_files = SimpleNamespace(Path=lambda _: pathlib.Path("none"))
    monkeypatch.setattr(compile_cache, "pathlib", no_files)
    name = compile_cache._machine()
    assert name.startswith("jaxlib-")
    assert name != before


def test_warnings_that_are_not_of_the_cache_are_shown_as_before(monkeypatch):
    shown = []
    monkeypatch.setattr(warnings, "showwarning", lambda *one: shown.append(one))
    compile_cache._mend_damaged_programs()
    warnings.showwarning("another", UserWarning, "file.py", 3)
    assert shown == [("another", UserWarning, "file.py", 3)]
