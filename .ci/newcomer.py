"""The first commands of a newcomer, in an environment that has only the wheel.

Run it in an empty folder: ``PYTHON .ci/newcomer.py``.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

from PIL import Image, ImageDraw

# Beside the interpreter: the environment need not be active.
COMMAND = shutil.which("capsjax", path=os.path.dirname(sys.executable))
RUN = "runs/mnist-smoke-seed0"
PICTURES = {"0": "0.png", "1": "1.png", "no digit": "empty.png"}


def capsjax(*arguments, **environment):
    """Runs a command, and returns what it answered."""
    print("+ capsjax", *arguments, flush=True)
    done = subprocess.run(
        [COMMAND, *arguments],
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=True,
    )
    print(done.stdout, flush=True)
    return done.stdout


# No home that can be written, as in a container.
capsjax("train", "--config", "capsjax:mnist:smoke", HOME="/proc")
result = json.loads(pathlib.Path(RUN, "result.json").read_text("utf-8"))
assert result["test"]["accuracy"] > 0.95, result
capsjax("evaluate", "--workdir", RUN)
for verdict, name in PICTURES.items():
    image = Image.new("RGB", (400, 300), "white")
    if verdict == "0":
        ImageDraw.Draw(image).ellipse((120, 60, 240, 260), outline="black", width=16)
    if verdict == "1":
        ImageDraw.Draw(image).line((200, 50, 180, 250), fill="black", width=16)
    image.save(name)
answers = json.loads(capsjax("predict", "--workdir", RUN, "--json", *PICTURES.values()))
assert [one["verdict"] for one in answers] == list(PICTURES), answers
capsjax("report", RUN)
# The network in the wheel.
lines = capsjax("predict", *PICTURES.values()).splitlines()
for verdict in PICTURES:
    # No digit has its reason.
    last = f"{verdict} (none reaches 0.5)" if "no" in verdict else verdict
    assert any(line.endswith(f"  {last}") for line in lines), lines
capsjax("explore", "--no-open")
assert pathlib.Path("explorer.html").stat().st_size > 100_000
capsjax("--version")
