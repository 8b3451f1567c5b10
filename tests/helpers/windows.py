"""Makes a process on Linux refuse what Windows has not."""

import os
import pathlib
import re
import shutil
import signal
import sys
import warnings

# What has no wheel for Windows, and what needs it; then what Python has not there.
# (No uvloop either, but what Orbax takes instead there is not installed here.)
WITHOUT_WHEEL = {"array_record", "tensorflow_datasets", "importlib_resources"}
WITHOUT_MODULE = {"fcntl", "grp", "pwd", "resource", "syslog", "termios", "tty"}
_WITHOUT = {
    os: ("fork", "geteuid", "getuid", "getpgid", "killpg", "mkfifo", "sync", "chown"),
    signal: ("SIGHUP", "SIGKILL", "SIGUSR1", "SIGALRM", "pthread_kill", "alarm"),
}
# Endings count as names: CON.json is the console.
_FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f]|[ .]$|^(con|prn|aux|nul)(\..*)?$', re.I)


class _Hider:
    def find_spec(self, name, path=None, target=None):
        del path, target
        if name.split(".")[0] in WITHOUT_WHEEL | WITHOUT_MODULE:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def simulate(folder):
    """Simulates Windows for all that comes later, and for files in a folder."""
    sys.meta_path.insert(0, _Hider())
    for name in WITHOUT_WHEEL | WITHOUT_MODULE:
        sys.modules.pop(name, None)
    for module, names in _WITHOUT.items():
        for name in names:
            vars(module).pop(name, None)
    # Not by descriptors of folders, which Windows has not.
    vars(shutil)["_use_fd_functions"] = False
    # Fails where the encoding of a text file is left to the system: not UTF-8 there.
    # Python warns only under PYTHONWARNDEFAULTENCODING.
    warnings.filterwarnings("ignore", category=EncodingWarning)
    warnings.filterwarnings("error", category=EncodingWarning, module=r"capsjax\.")
    folder = os.path.realpath(folder)

    def hook(event, arguments):
        if event in ("open", "os.mkdir"):
            for part in _parts_within(arguments[0], folder):
                if _FORBIDDEN.search(part):
                    raise OSError(22, "Windows forbids the name", part)
        if event == "open" and arguments[1] is None and os.path.isdir(arguments[0]):
            raise PermissionError(13, "Windows opens no folder", arguments[0])
        if event in ("os.rename", "os.remove", "os.rmdir"):
            for path in arguments[: 1 + (event == "os.rename")]:
                _require_closed(path, folder)

    sys.addaudithook(hook)


def _parts_within(path, folder):
    if isinstance(path, int):
        return ()
    path = os.path.abspath(os.fsdecode(path))
    is_within = path.startswith(folder + os.sep)
    return pathlib.Path(path).relative_to(folder).parts if is_within else ()


def _require_closed(path, folder):
    """Raises if this process has a file open that it moves, replaces or deletes."""
    if not (parts := _parts_within(path, folder)):
        return
    path = os.path.join(folder, *parts)
    for number in os.listdir("/proc/self/fd"):
        try:
            opened = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if opened == path or opened.startswith(path + os.sep):
            raise PermissionError(13, "Windows: the file is open", path)
