"""The folder of one run: its layout, its lock, and whether it is the same run.

=====================  =================================================================
``config.json``        the configuration, written when the run starts
``dataset.json``       what it is trained on: name, image shape, class names, and how
                       many of these each image shows
``metrics.jsonl``      one JSON object a line, see ``capsjax.metrics``
``checkpoints/``       the latest state and the best by validation loss
``result.json``        what came out, once the run has ended
``figures/``           what ``capsjax.evaluate`` drew
``bad_batches/``       batches whose loss or gradient was not finite
``lock``               held while a process works here
=====================  =================================================================
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

from capsjax import config as configs


class WorkdirError(Exception):
    """A work directory can't be used for this run; the message says what to do."""


class Workdir:
    """Paths of one run.

    Args:
        path: The folder; it need not exist yet.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)
        self.config = self.path / "config.json"
        self.dataset = self.path / "dataset.json"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.result = self.path / "result.json"
        self.figures = self.path / "figures"
        self.bad_batches = self.path / "bad_batches"
        self.tensorboard = self.path / "tensorboard"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and holds it for this process alone.

        Raises:
            WorkdirError: If another process works in it, it can't be written, or
                something in it leads elsewhere.
        """
        self.require_no_links()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.path / "lock", "a+")  # noqa: SIM115, closed below
        except OSError as error:
            raise WorkdirError(
                f"can't write in {self.path}: {error.strerror}."
            ) from error
        with file:
            try:
                # The kernel lets go of it when the process dies, however it dies.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise WorkdirError(
                    f"{self.path} is in use by {holder}; wait for it, stop it, or "
                    "choose another --workdir."
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield

    def require_no_links(self) -> None:
        """Refuses symbolic links: writing through one would change what is elsewhere.

        The folder itself may be one.

        Raises:
            WorkdirError: Naming the link.
        """
        for folder, folders, files in os.walk(self.path):
            for name in folders + files:
                path = pathlib.Path(folder, name)
                if path.is_symlink():
                    raise WorkdirError(
                        f"{path} is a symbolic link to {os.readlink(path)}; nothing in "
                        "a run's folder may lead out of it. Remove the link."
                    )

    def check(self, config: configs.Config) -> None:
        """Compares the configuration with that of the run that is there, if any.

        Raises:
            WorkdirError: If the folder holds another configuration's run, naming the
                fields that differ, or holds something that is not a run.
        """
        if not self.config.exists():
            # An empty folder is left by a process that was killed as it began.
            has_saved = self.checkpoints.exists() and any(self.checkpoints.iterdir())
            if has_saved or self.metrics.exists():
                raise WorkdirError(
                    f"{self.path} holds checkpoints or metrics but no config.json: it "
                    "can't be told which run they are of. Choose another --workdir."
                )
            return
        there = self.read_json(self.config)
        if not isinstance(there, dict):
            raise WorkdirError(
                f"{self.config} is damaged: it can't be told which run is there. "
                "Choose another --workdir."
            )
        with contextlib.suppress(configs.ConfigError):
            # Fields that it does not have yet have their defaults.
            there = configs.to_dict(configs.from_dict(there))
        different = differences(there, configs.to_dict(config))
        final = [line for name, line in different if name not in configs.CHANGEABLE]
        if final:
            raise WorkdirError(
                f"{self.path} holds a run with another configuration: "
                f"{'; '.join(final)}. Choose another --workdir. (Only "
                f"{', '.join(configs.CHANGEABLE)} may change when a run goes on.)"
            )

    def read_config(self) -> configs.Config:
        """The configuration of the run that is here.

        Raises:
            WorkdirError: If there is none, or it can't be read.
        """
        if not self.config.exists():
            raise WorkdirError(
                f"{self.path} holds no run: there is no {self.config.name} in it."
            )
        try:
            config = configs.from_dict(self.read_json(self.config))
            configs.validate(config)
            return config
        except configs.ConfigError as error:
            raise WorkdirError(f"{self.config} does not fit: {error}") from error

    def read_json(self, path: pathlib.Path) -> Any:
        """Reads a JSON file of the run.

        Raises:
            WorkdirError: If it can't be read or is not JSON.
        """
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise WorkdirError(f"can't read {path}: {error}.") from error


def default_path(config: configs.Config) -> pathlib.Path:
    """``runs/<experiment>-<variant>-seed<seed>``."""
    parts = (config.experiment, config.variant, f"seed{config.seed}")
    return pathlib.Path("runs", "-".join(part for part in parts if part))


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file whole or not at all: aside first, then renamed."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file whole or not at all: aside first, then renamed.

    Raises:
        WorkdirError: If it can't be written.
    """
    aside = None
    try:
        descriptor, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with open(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except OSError as error:
        if aside is not None:
            pathlib.Path(aside).unlink(missing_ok=True)
        raise WorkdirError(f"can't write {path}: {error.strerror}.") from error


def differences(there: Any, here: Any, path: str = "") -> list[tuple[str, str]]:
    """Names of the fields that differ, each with a line that says how.

    Args:
        there: One configuration; a list stands for a tuple, as in ``config.json``.
        here: Another.
        path: The name of what is compared, within a larger whole.
    """
    if isinstance(there, dict) and isinstance(here, dict):
        return [
            difference
            for name in {**there, **here}
            for difference in differences(
                there.get(name), here.get(name), f"{path}.{name}" if path else name
            )
        ]
    there, here = (list(v) if isinstance(v, tuple) else v for v in (there, here))
    return (
        [] if there == here else [(path, f"{path} is {there!r} there, {here!r} here")]
    )
