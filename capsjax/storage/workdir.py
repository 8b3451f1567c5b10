"""The folder of one run: its layout, its lock, and the checks of its content.

=======================  ===============================================================
``config.json``          the configuration, written when the run starts
``history.json``         settings that changed between starts, see ``storage.history``
``dataset.json``         the data: name, image shape, class names, number of classes in
                         each image, and the images of each split
``metrics.jsonl``        one JSON object per line, see ``capsjax.storage.metrics``
``checkpoints/``         the latest state and the best by validation loss
``weights.safetensors``  weights to share, in place of the checkpoints: such a folder
                         is opened as a run is, and not trained in
``result.json``          the result, once the run has ended
``figures/``             figures that ``capsjax.evaluate`` drew
``bad_batches/``         batches whose loss or gradient was not finite
``lock``                 held while a process works here
=======================  ===============================================================
"""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import re
import socket
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

from capsjax import config as configs
from capsjax.config import former
from capsjax.data import BY_CLASS, FIRST_EDITION, Dataset, Generated
from capsjax.data.loading import may_name_a_place
from capsjax.data.sampling import SPLIT_RULES
from capsjax.initializers import SCALED
from capsjax.runtime.console import warn
from capsjax.runtime.paths import expanded
from capsjax.storage.files import ASIDE, WorkdirError, writing

# The start of a line of metrics.
_KIND = re.compile(r'\{"kind": "(\w+)"')

# Errors of file systems without locks: Lustre without the option, some network mounts.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}


class Workdir:
    """Paths of one run.

    Args:
        path: The folder; it need not exist yet.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = expanded(path)
        self.config = self.path / "config.json"
        self.history = self.path / "history.json"
        self.dataset = self.path / "dataset.json"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.weights = self.path / "weights.safetensors"
        self.result = self.path / "result.json"
        self.figures = self.path / "figures"
        self.bad_batches = self.path / "bad_batches"
        self.tensorboard = self.path / "tensorboard"
        self._lock = self.path / "lock"
        self._holder: bytes | None = None  # What this process wrote into the lock.

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and holds it for this process alone.

        Raises:
            WorkdirError: If another process works in it, it can't be written, or
                something in it is neither a file nor a folder.
        """
        # Lock the folder, and write the holder into the lock.
        self.require_plain_files()
        with contextlib.ExitStack() as stack:
            with writing(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
                # Without a buffer, so that a failed write raises here.
                file = stack.enter_context(open(self._lock, "a+b", buffering=0))
                try:
                    if not _lock(file):
                        warn(
                            f"{self.path} can't be locked on this system: start no "
                            "second process there."
                        )
                except BlockingIOError:
                    file.seek(0)
                    holder = " ".join(file.read(200).decode(errors="replace").split())
                    raise WorkdirError(
                        f"{self.path} is in use by {holder or 'another process'}; wait "
                        "for it, stop it, or choose another --workdir."
                    ) from None
                file.truncate(0)
                holder = f"process {os.getpid()} on {socket.gethostname()}".encode()
                file.write(holder)
                self._clear_away()
            # Hold it until the caller is done.
            self._holder = holder
            try:
                yield
            finally:
                self._holder = None

    def require_held(self) -> None:
        """Raises if the folder was deleted or moved while this process holds it.

        Does nothing in a process that does not hold it.

        Raises:
            WorkdirError: If the lock is gone, or another process holds it.
        """
        if self._holder is None:
            return
        try:
            is_held = self._lock.read_bytes() == self._holder
        except FileNotFoundError:
            is_held = False
        except OSError as error:
            raise WorkdirError(f"can't read {self._lock}: {error.strerror}.") from error
        if not is_held:
            raise WorkdirError(
                f"{self.path} was deleted, moved or replaced while the run was in it. "
                "If it was moved, its checkpoints are there: start the run there again."
            )

    def _clear_away(self) -> None:
        """Deletes files that killed processes had begun to write."""
        for folder in (self.path, self.bad_batches):
            for left in folder.glob(f".*{ASIDE}"):
                left.unlink()

    @property
    def has_saved(self) -> bool:
        """True if there is a checkpoint, perhaps a damaged one."""
        return self.checkpoints.exists() and any(self.checkpoints.iterdir())

    @property
    def is_untrained(self) -> bool:
        """True if ``save_run`` made the run, of weights: it has no images."""
        with contextlib.suppress(WorkdirError, AttributeError):
            return self.read_json(self.dataset).get("splits") == {}
        return False

    @property
    def is_shared(self) -> bool:
        """True if ``weights.safetensors`` is there in place of checkpoints."""
        return self.weights.exists() and not self.has_saved

    def require_plain_files(self) -> None:
        """Raises if the folder holds anything besides files and folders.

        Writing through a symbolic link would change files elsewhere; reading a pipe may
        wait forever. The folder itself may be a link.

        Raises:
            WorkdirError: With the path of the link, pipe or device.
        """
        for folder, folders, files in os.walk(self.path):
            for name in folders + files:
                path = pathlib.Path(folder, name)
                try:
                    mode = path.lstat().st_mode
                except FileNotFoundError:  # Deleted by the run that trains.
                    continue
                if stat.S_ISLNK(mode):
                    raise WorkdirError(
                        f"{path} is a symbolic link to {os.readlink(path)}; nothing in "
                        "a run's folder may lead out of it. Remove the link."
                    )
                if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                    raise WorkdirError(
                        f"{path} is neither a file nor a folder, but a pipe or a "
                        "device; no run has written it. Remove it."
                    )

    def check(
        self,
        config: configs.Config,
        sets: Mapping[str, Dataset | Generated] | None = None,
    ) -> None:
        """Checks that a run in the folder has the same configuration and images.

        Args:
            config: The configuration.
            sets: The images of each split.

        Raises:
            WorkdirError: If the folder holds a run with another configuration, with the
                fields that differ, or with other images, or something that is not a
                run.
        """
        # Read the configuration in the folder.
        self.require_plain_files()
        if self.is_shared:
            raise WorkdirError(
                f"{self.path} holds weights to share, which no training changes: "
                "choose another --workdir, and --config.init_from="
                f"{self.path} to start from them."
            )
        if not self.config.exists():
            # A process killed as it began leaves an empty folder.
            if self.has_saved or self.metrics.exists():
                raise WorkdirError(
                    f"{self.path} holds checkpoints or metrics but no config.json, so "
                    "their run cannot be identified. Choose another --workdir."
                )
            return
        there = self.read_json(self.config)
        if not isinstance(there, dict):
            raise WorkdirError(
                f"{self.config} is damaged, so its run cannot be identified. Choose "
                "another --workdir."
            )
        with contextlib.suppress(configs.ConfigError):
            # Fields newer than the file get their defaults.
            there = configs.to_dict(configs.from_dict(there, config))
        # Compare the configurations.
        different = differences(there, configs.to_dict(config))
        final = [line for name, line in different if name not in configs.CHANGEABLE]
        before = self._identities(sets or {})
        if before and all(map(_may_be_elsewhere, (there, configs.to_dict(config)))):
            final = [
                line
                for name, line in different
                if name not in (*configs.CHANGEABLE, *configs.PLACES)
            ]
        if final:
            raise WorkdirError(
                f"{self.path} holds a run with another configuration: "
                f"{'; '.join(final)}. Choose another --workdir. (Only "
                f"{', '.join(configs.CHANGEABLE)} may change when a run resumes, and "
                "the place of the same images.)"
            )
        # Compare the images.
        if problem := self.other_images(sets or {}):
            raise WorkdirError(
                f"{self.path} {problem}. Put them back, or choose another --workdir."
            )

    def split_rule(self) -> str:
        """Returns the name of the rule that divided the run's training images.

        The default is this edition's rule if there is no run, and the first edition's
        if the run names none.

        Raises:
            WorkdirError: If the run has saved something, and its ``dataset.json`` can't
                be read or names an unknown rule.
        """
        self.require_plain_files()
        if not self.config.exists():
            return BY_CLASS
        try:
            about = self.read_json(self.dataset)
            rule = about.get("split_rule", FIRST_EDITION)
        except (WorkdirError, AttributeError) as error:
            if not self.has_saved:
                return BY_CLASS  # The run was killed as it began.
            raise WorkdirError(
                f"{self.dataset} is missing or damaged: it can't be told which images "
                "the run held out. Put it back, or choose another --workdir."
            ) from error
        if rule not in SPLIT_RULES:
            raise WorkdirError(
                f"{self.dataset} has the split_rule {rule!r}: it must be one of "
                f"{', '.join(SPLIT_RULES)}. Use the edition that wrote it."
            )
        return rule

    def is_of(self, dataset: Dataset, split: str) -> bool:
        """Returns True if these are known to be the run's images of that split."""
        before = self._identities([split]).get(split)
        return before is not None and dataset.difference(before) is None

    def other_images(self, sets: Mapping[str, Dataset | Generated]) -> str | None:
        """Compares splits with the splits of the run in the folder.

        Args:
            sets: The images of each split.

        Returns:
            The first difference, in words to follow the run's name; None if none is
            known.
        """
        for name, before in self._identities(sets).items():
            if changed := sets[name].difference(before):
                return f"is of other {name} images: {changed}"
        return None

    def _identities(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Reads the identities of splits from ``dataset.json``; all of them or none."""
        try:
            there = self.read_json(self.dataset)["splits"]
            return {name: dict(there[name]) for name in names}
        except (WorkdirError, KeyError, TypeError, ValueError):
            return {}  # The file is missing, damaged or too old.

    def keep_start(self, config: configs.Config) -> configs.Config:
        """Returns the config with the initializers of the run in the folder, if any.

        A run of the first edition resumes under its first command line, whose defaults
        are ``scaled`` now and were ``former.INITIALIZERS`` then. Its ``config.json``
        keeps the old initializers, and a run without a checkpoint starts with them
        again. Any other difference is left to ``check``.

        Raises:
            WorkdirError: If something in the folder is neither a file nor a folder.
        """
        self.require_plain_files()
        try:
            there = configs.from_dict(self.read_json(self.config)).model
        except (WorkdirError, configs.ConfigError):
            return config  # The file is missing or damaged.
        here = config.model
        kept = {
            name: value
            for name, value in former.INITIALIZERS.items()
            if getattr(here, name, None) == SCALED
            and getattr(there, name, None) == value
        }
        return dataclasses.replace(config, model=configs.replaced(here, **kept))

    def read_config(self, own: configs.Config | None = None) -> configs.Config:
        """Reads the configuration of the run in the folder.

        Args:
            own: The config of the run's experiment file, if it has classes of its own.

        Raises:
            WorkdirError: If there is no run, its file can't be read, or something in
                the folder is neither a file nor a folder.
        """
        self.require_plain_files()
        if not self.config.exists():
            raise WorkdirError(
                f"{self.path} holds no run: it has no {self.config.name}."
            )
        try:
            config = configs.from_dict(self.read_json(self.config), own)
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
            return json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise WorkdirError(f"can't read {path}: {error}.") from error

    def read_metrics(self, *kinds: str) -> list[dict[str, Any]]:
        """Reads the lines of ``metrics.jsonl``, without a line torn by a crash.

        Args:
            kinds: The kinds of lines to read, of which there may be none; all by
                default. Lines of other kinds are skipped unread: of millions of steps
                a report needs a hundred validations.

        Raises:
            WorkdirError: If there are no lines, or they can't be read.
        """
        read, is_empty = [], True
        try:
            with self.metrics.open(encoding="utf-8") as file:
                for line in file:
                    is_empty = False
                    named = _KIND.match(line)
                    if kinds and named and named[1] not in kinds:
                        continue
                    if line.endswith("\n"):
                        read.append(json.loads(line))
        except (OSError, ValueError, RecursionError) as error:
            raise WorkdirError(f"can't read {self.metrics}: {error}.") from error
        if is_empty or not (read or kinds):
            raise WorkdirError(f"{self.metrics} has no line yet.")
        return read


def _may_be_elsewhere(config: Mapping[str, Any]) -> bool:
    """Returns True if a configuration, as nested values, names a place of images."""
    data = config.get("data")
    if not isinstance(data, dict):
        return False
    return bool(data.get("path")) or may_name_a_place(str(data.get("name")))


def default_path(config: configs.Config) -> pathlib.Path:
    """Returns ``runs/<experiment>-<variant>-seed<seed>``."""
    parts = (config.experiment, config.variant, f"seed{config.seed}")
    return pathlib.Path("runs", "-".join(part for part in parts if part))


def _lock(file: IO[bytes]) -> bool:
    """Locks a file for this process alone; returns False if the system has no locks.

    The kernel releases the lock when the process dies in any way.

    Raises:
        BlockingIOError: If another process has locked it.
    """
    try:
        import fcntl
    except ImportError:  # Windows.
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def differences(there: Any, here: Any, path: str = "") -> list[tuple[str, str]]:
    """Returns the names of fields that differ, each with a line on the difference.

    Args:
        there: One configuration; a list stands for a tuple, as in ``config.json``.
        here: Another configuration.
        path: Name of both within a larger configuration.
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
