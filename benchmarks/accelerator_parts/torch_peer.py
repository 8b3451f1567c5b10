"""The same network and step in PyTorch, in one process of its interpreter."""

import json
import pathlib
import subprocess

from accelerator_parts.points import Part

SCRIPT = pathlib.Path(__file__).resolve().parents[1] / "peers" / "torch_capsnet.py"
# Compiled rows take half a minute each. Most worth first.
ROWS = tuple(
    (batch, dtype, how)
    for batch, how in (
        *((2048, "compiled"), (128, "compiled"), (2048, "eager"), (128, "eager")),
        *((512, "compiled"), (512, "eager"), (128, "graphs")),
    )
    for dtype in ("bfloat16", "float32")
)
QUICK_ROWS = ((2, "float32", "eager"), (2, "bfloat16", "compiled"))


def run(part: Part) -> None:
    """Passes on what the process prints, one line for each row."""
    rows = QUICK_ROWS if part.quick else ROWS
    names = [f"{how}, {dtype}, batch {batch}" for batch, dtype, how in rows]
    device = "cpu" if part.quick else "cuda"
    seconds = 0.1 if part.quick else 1.0
    command = [part.torch_python, str(SCRIPT), "--work", "rows", "--device", device]
    command += ["--rows", json.dumps(rows), "--seconds", str(seconds)]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    except OSError as error:
        part.write(note=f"no PyTorch: {error}")
        return
    assert process.stdout is not None
    about = json.loads(process.stdout.readline() or "{}")
    if "version" not in about:
        process.wait()
        if about.get("missing") == "torch":
            part.write(note=f"no PyTorch in {part.torch_python}")
            return
        raise SystemExit(f"PyTorch ended with {process.returncode}: {about}")
    part.write(about=about, points=names)
    for name in names:
        part.write(began=name)
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"PyTorch ended with {process.wait()} in {name}")
        part.write(point=name, **json.loads(line))
    process.wait()
