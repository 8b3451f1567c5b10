"""What a user is handed may be damaged or hostile: an error, never a traceback.

    FUZZ_EXAMPLES=3000 python -m pytest tests/test_fuzz.py

tries more than the tests do.
"""

import contextlib
import io
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from capsjax import config as configs
from capsjax import flags
from capsjax.checkpoint import CheckpointError, Checkpoints
from capsjax.predict import ImageError, fit_image, read_image
from capsjax.run import load_run
from capsjax.workdir import Workdir, WorkdirError

EXPERIMENT = pathlib.Path(__file__).parents[1] / "experiments" / "mnist.py"


def fuzzed(share=1.0):
    """Settings for so large a part of the examples that are asked for."""
    asked = int(os.environ.get("FUZZ_EXAMPLES", "150"))
    return settings(
        max_examples=max(1, int(share * asked)),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize="FUZZ_EXAMPLES" not in os.environ,
    )


@st.composite
def mutations(draw):
    """A function that damages bytes."""
    kind = draw(st.sampled_from(["flip", "cut", "insert", "repeat", "replace"]))
    where, length = draw(st.floats(0, 1)), draw(st.integers(1, 40))
    noise = draw(st.binary(min_size=length, max_size=length))

    def mutated(data):
        at = int(where * len(data))
        return {
            "flip": data[:at] + noise + data[at + length :],
            "cut": data[:at],
            "insert": data[:at] + noise + data[at:],
            "repeat": data[:at] + data[:at] + data[at:],
            "replace": noise,
        }[kind]

    return mutated


FIELDS = st.sampled_from(
    [
        *("seed", "num_epochs", "batch_size", "data.name", "data.max_shift"),
        *("model.decoder_features", "model.routing", "model.compute_dtype"),
        *("optimizer.learning_rate", "optimizer.schedule", "loss.present", "model"),
        *("tensorboard", "model.initializers.conv", "experiment", "nothing.at.all"),
    ]
)
VALUES = st.one_of(
    st.text(max_size=20),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["(1,)", "()", "((", "[1", "true", "None", "1e999", "__import__"]),
)
FLAGS = st.sampled_from(["--num_cpu_devices", "--workdir", "--process_id", "--x", "-"])


@fuzzed()
@given(st.lists(st.tuples(FIELDS, VALUES), max_size=3), FLAGS, VALUES)
def test_overrides_end_in_a_config_or_one_clear_line(fields, flag, value):
    arguments = [f"--config.{field}={text}" for field, text in fields]
    with contextlib.suppress(flags.UsageError, configs.ConfigError):
        asked = flags.parse(
            ["train", f"--config={EXPERIMENT}:smoke", *arguments, f"{flag}={value}"], ""
        )
        configs.validate(asked.config)


@pytest.fixture(scope="module", params=["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def picture(request):
    image = Image.new("RGB", (60, 40), "white")
    ImageDraw.Draw(image).ellipse((10, 5, 40, 35), outline="black", width=4)
    file = io.BytesIO()
    image.save(file, request.param)
    return file.getvalue()


@fuzzed()
@given(mutate=mutations())
def test_an_image_file_is_read_or_refused(picture, tmp_path_factory, mutate):
    path = tmp_path_factory.getbasetemp() / "picture"
    path.write_bytes(mutate(picture))
    with contextlib.suppress(ImageError):
        fitted = fit_image(read_image(path), (28, 28, 1), invert=True)
        assert fitted.shape == (28, 28, 1)


@pytest.fixture(scope="module")
def whole(tiny_run):
    run = load_run(tiny_run)
    checkpoints = Checkpoints(run.workdir.checkpoints, read_only=True)
    params = {
        step: checkpoints.restore(step, {"params": run.params}, partly=True)["params"]
        for step in checkpoints.steps
    }
    checkpoints.close()
    return params


@fuzzed(share=0.1)
@given(mutate=mutations(), which=st.floats(0, 1, exclude_max=True))
def test_a_run_s_folder_is_used_whole_or_refused(
    tiny_run, whole, tmp_path_factory, mutate, which
):
    folder = tmp_path_factory.getbasetemp() / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tiny_run, folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [path for path in files if "figures" not in path.parts]
    path = files[int(which * len(files))]
    path.write_bytes(mutate(path.read_bytes()))
    try:
        run = load_run(folder)
    except (WorkdirError, CheckpointError):
        return
    jax.tree.map(np.testing.assert_array_equal, run.params, whole[run.step])
    Workdir(folder).check(run.config)


def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path):
    file = tmp_path / "bomb.png"
    Image.new("1", (8000, 8000)).save(file)
    assert file.stat().st_size < 20_000
    with pytest.raises(ImageError, match="8000 x 8000 pixels; at most 50,000,000"):
        read_image(file)


def test_postscript_is_not_run(tmp_path):
    file = tmp_path / "image.png"
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    with pytest.raises(ImageError, match="is not an image that can be read"):
        read_image(file)
