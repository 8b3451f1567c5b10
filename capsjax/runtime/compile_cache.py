"""Keeps compiled programs on disk, so that the next start does not wait for XLA."""

import contextlib
import glob
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import re
import warnings
from typing import Any

import jax

from capsjax.runtime.console import warn
from capsjax.runtime.paths import cache_folder

_CACHE_WARNING = re.compile(
    r"Error (read|writ)ing persistent compilation cache entry for '(.+?)': (.*)",
    re.DOTALL,
)


def keep_compiled_programs() -> None:
    """Turns on JAX's compilation cache in ``~/.cache/capsjax``; for a ``main`` only.

    The user's own settings win: ``JAX_COMPILATION_CACHE_DIR=...`` moves the cache,
    ``JAX_ENABLE_COMPILATION_CACHE=false`` turns it off. Warns and keeps nothing if the
    folder can't be written.
    """
    settings: Any = jax.config
    _mend_damaged_programs()
    is_set = settings.jax_compilation_cache_dir is not None
    if is_set or not settings.jax_enable_compilation_cache:
        return
    try:
        folder = cache_folder() / "compiled" / _machine()
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied", str(folder))
    except OSError as error:
        reason = error.strerror or error
        warn(f"compiled programs are not kept in {error.filename}: {reason}")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _mend_damaged_programs() -> None:
    """Deletes kept programs that JAX can't read, so that it keeps new ones.

    JAX itself leaves them on disk, and warns and compiles again at every start.
    """
    show = warnings.showwarning

    def show_or_mend(message: Any, *arguments: Any, **options: Any) -> None:
        if (found := _CACHE_WARNING.match(str(message))) is None:
            show(message, *arguments, **options)
            return
        doing, name, reason = found.groups()
        settings: Any = jax.config
        folder = pathlib.Path(settings.jax_compilation_cache_dir or os.devnull)
        for path in folder.glob(f"{glob.escape(name)}-*-cache"):
            with contextlib.suppress(OSError):
                path.unlink()
        reason = reason.splitlines()[0][:200]
        warn(
            f"a damaged compiled program, {name}, is made again ({reason})"
            if doing == "read"
            else f"the compiled program {name} can't be kept ({reason})"
        )

    if getattr(show, "__name__", "") != show_or_mend.__name__:
        warnings.showwarning = show_or_mend


def _machine() -> str:
    """Names processor and compiler: a program may not run on, or with, another."""
    try:
        cpus = pathlib.Path("/proc/cpuinfo").read_text("utf-8", "replace")
        kept = ("model name", "flags", "Features", "CPU part")
        cpu = cpus.split("\n\n")[0].splitlines()
        lines = [line for line in cpu if line.startswith(kept)]
    except OSError:
        lines = [platform.processor(), platform.machine()]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
    return f"jaxlib-{importlib.metadata.version('jaxlib')}-{digest}"
