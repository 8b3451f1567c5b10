"""What a user is handed may be damaged or hostile: an error, never a traceback.

    FUZZ_EXAMPLES=3000 python -m pytest tests/reliability/test_fuzz.py

tries more than the tests do.
"""

import contextlib
import copy
import faulthandler
import functools
import io
import itertools
import json
import os
import shutil
import sys
import types
import typing
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from kill_and_resume import like_of
from PIL import Image, ImageDraw
from places import ROOT

from capsjax import config as configs
from capsjax import report, train
from capsjax.config import values
from capsjax.data import loading
from capsjax.data.images import (
    ImageError,
    read_extremes,
    read_header,
    read_image,
)
from capsjax.data.preparation import Preparation
from capsjax.storage import checkpoints as module
from capsjax.storage.checkpoints import CheckpointError, Checkpoints
from capsjax.storage.files import WorkdirError
from capsjax.storage.metrics import MetricWriter
from capsjax.storage.run import Run, load_run
from capsjax.storage.workdir import Workdir
from capsjax.training import trainer

EXPERIMENT = ROOT / "experiments" / "mnist.py"
_SECONDS_UNTIL_IT_HANGS = 60


def fuzzed(share):
    """Settings for a part of the examples."""
    number = int(os.environ.get("FUZZ_EXAMPLES", "150"))
    return settings(
        max_examples=max(1, round(share * number)),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize="FUZZ_EXAMPLES" not in os.environ,
    )


@contextlib.contextmanager
def not_for_ever():
    """Whatever hangs ends the tests, and where it does is shown."""
    faulthandler.dump_traceback_later(
        _SECONDS_UNTIL_IT_HANGS, exit=True, file=sys.__stderr__
    )
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def told_at_most(*errors):
    """One of these errors may be raised, and is one line."""
    try:
        yield
        event("no error")
    except errors as error:
        message = str(error)
        event(f"message: {type(error).__name__}")
        assert len(message.splitlines()) == 1, message


def exit_code(main, *arguments):
    """Of a command that prints no error, or one line and no traceback."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        code = main(list(arguments))
    lines = err.getvalue().splitlines()
    assert len(lines) == (code != 0), err.getvalue()
    assert all(": error: " in line for line in lines)
    event(f"exit code {code}")
    return code


# ---- what is given on the command line


class Word:
    """Stands for a word that chooses the kind of a section."""


class Field(NamedTuple):
    """A field, its type, and the flags that choose the kind of section that has it."""

    name: str
    kind: object
    chosen: tuple[str, ...]


def plain(hint):
    """Returns the type without its range; Any for a union that more than None is in."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [one for one in typing.get_args(hint) if one is not type(None)]
        hint = kinds[0] if len(kinds) == 1 else Any
    return hint.__origin__ if typing.get_origin(hint) is Annotated else hint


def fields(section, path="", chosen=()):
    """All fields of a config, those of every kind of its sections too."""
    for name, hint in values.fields_of(section).items():
        inside, where = getattr(section, name), path + name
        if not values.is_section(inside):
            yield Field(where, plain(hint), chosen)
            continue
        yield Field(where, Word, chosen)
        yield from fields(inside, f"{where}.", chosen)
        for word, kind in values.table_of(type(inside)).items():
            if kind is not type(inside):
                flags = (*chosen, f"--config.{where}={word}")
                yield from fields(kind(), f"{where}.", flags)


# Those of the default kinds are the first of their names.
FIELDS = {one.name: one for one in reversed([*fields(configs.Config())])}
del FIELDS["data.name"]
TEXTS = (
    *("", "sum", "mean", "constant", "exponential", "cosine", "bfloat16", "cnn"),
    *("normal(0.1)", "normal(1e999)", "normal()", "zeros", "skip", "dynamic", "."),
)
# Of these many fit the field; of those below hardly any.
FITTING = {
    int: st.one_of(
        st.integers(1, 9),
        st.integers(0, 12).map(lambda n: 2**n),
        st.integers(0, 60).map(lambda n: 2**n),
        st.integers(0, 400).map(lambda n: 10**n),
    ),
    float: st.one_of(st.floats(0, 1), st.floats(), st.integers(0, 2)),
    bool: st.sampled_from(["true", "false"]),
    str: st.sampled_from(TEXTS),
    Any: st.sampled_from(["true", "2", "none"]),
    Word: st.sampled_from(
        [
            word
            for name in ("model", "model.routing", "loss", "optimizer", "augmentation")
            for word in configs.words(name)
        ]
    ),
}
TUPLES = st.lists(FITTING[int], max_size=3).map(lambda numbers: str(tuple(numbers)))
VALUES = st.one_of(
    st.text(max_size=20),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["(1,)", "()", "((", "[1", "true", "None", "1e999", "__import__"]),
)
DATA_NAMES = st.sampled_from(
    ["", "/", ".", "no/such/set", "~nobody", "mnist", "\0"]
).map("--config.data.name={}".format)


@st.composite
def arguments(draw):
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return [draw(DATA_NAMES)]
    if kind == 1:
        return [draw(FLAGS)]
    field = FIELDS[draw(st.sampled_from(sorted(FIELDS)))]
    fitting = FITTING.get(field.kind, TUPLES)
    if typing.get_origin(field.kind) is Literal:
        fitting = st.sampled_from(typing.get_args(field.kind))
    value = draw(VALUES if kind == 2 else fitting)
    return [*field.chosen, f"--config.{field.name}={value}"]


FLAGS = st.builds(
    "{}={}".format,
    st.sampled_from(
        [
            *("--heartbeat_seconds", "--process_id", "--num_processes"),
            *("--coordinator_address", "--distributed", "--x", "--config.x", "-"),
            *("--config", "--flagfile", "--nohelp", "--config.model"),
        ]
    ),
    VALUES,
)


class Begun(Exception):
    """Everything that precedes the training went well."""


def begin(*_):
    raise Begun


LOAD_MNIST = functools.cache(loading.load_mnist)


@pytest.mark.slow
@fuzzed(share=0.2)
@given(st.lists(arguments(), max_size=3))
def test_a_command_line_reaches_the_training_or_ends_in_one_line(
    tmp_path_factory, arguments
):
    folder = tmp_path_factory.getbasetemp()
    known = (
        f"--config={EXPERIMENT}:smoke",
        "--config.batch_size=48",  # By four devices.
        f"--workdir={folder / 'fuzzed'}",
    )
    with pytest.MonkeyPatch.context() as patch, not_for_ever():
        patch.chdir(folder)
        patch.setattr(trainer, "Trainer", begin)
        patch.setattr(loading, "load_mnist", LOAD_MNIST)
        try:
            code = exit_code(
                *(train.main, "train", "--distributed=off", *known),
                *itertools.chain(*arguments),
            )
        except Begun:
            event("training begins")
        else:
            assert code in (1, 2)


# ---- image files


def drawing():
    image = Image.new("RGB", (60, 40), "white")
    ImageDraw.Draw(image).ellipse((10, 5, 40, 35), outline="black", width=4)
    return image


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pictures():
    """One of every kind that is read."""
    colour, grey = drawing(), drawing().convert("L")
    deep = Image.fromarray(np.asarray(grey, np.uint16) * 256)
    real = Image.fromarray(np.asarray(grey, np.float32) / 255)
    whole = Image.fromarray(np.asarray(grey, np.int32) * 1000)
    clear = colour.convert("RGBA")
    clear.putalpha(128)
    exif = Image.Exif()
    exif[0x0112] = 6  # Turned by 90 degrees.
    return {
        **{
            kind: encoded(colour, kind)
            for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
        },
        "grey PNG": encoded(grey, "PNG"),
        "grey JPEG": encoded(grey, "JPEG"),
        "grey PPM": encoded(grey, "PPM"),
        "one bit": encoded(grey.convert("1"), "PNG"),
        "palette": encoded(colour.quantize(8), "PNG"),
        "transparent": encoded(clear, "PNG"),
        "turned": encoded(colour, "JPEG", exif=exif),
        "CMYK": encoded(colour.convert("CMYK"), "TIFF"),
        "16 bits": encoded(deep, "PNG"),
        "16 bits, TIFF": encoded(deep, "TIFF"),
        "32 bits": encoded(whole, "TIFF"),
        "real numbers": encoded(real, "TIFF"),
        "packed": encoded(colour, "TIFF", compression="tiff_lzw"),
    }


PICTURES = pictures()
PREPARATIONS = [
    Preparation.of("mnist", (28, 28, 1)),
    Preparation("as_is", 28, 28, 1, scale="own"),
    Preparation("as_is", 28, 28, 3, scale=(-5.0, 4095.0)),
    *(Preparation.of("", (20, 28, channels)) for channels in (1, 2, 3, 4)),
]


@st.composite
def mutations(draw):
    """A function that damages bytes, at one place or at a few."""

    def mutation():
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

    steps = [mutation() for _ in range(draw(st.integers(1, 3)))]
    return lambda data: functools.reduce(
        lambda damaged, step: step(damaged), steps, data
    )


@fuzzed(share=0.4)
@given(st.sampled_from(list(PICTURES)), mutations(), st.sampled_from(PREPARATIONS))
def test_an_image_file_is_read_or_refused(tmp_path_factory, kind, mutate, preparation):
    path = tmp_path_factory.getbasetemp() / "picture"
    path.write_bytes(mutate(PICTURES[kind]))
    notes = []
    with not_for_ever(), told_at_most(ImageError):
        image = preparation.apply(path, notes=notes)
        assert image.shape == preparation.image_shape
        assert len(notes) <= 3
    with not_for_ever(), told_at_most(ImageError):
        if read_header(path).is_deep:
            least, most, _ = read_extremes(path)
            assert least <= most


@pytest.mark.parametrize("kind", PICTURES)
def test_what_is_not_damaged_is_read(kind, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(PICTURES[kind])
    assert Preparation.of("mnist", (28, 28, 1)).apply(path).max() == 255


# ---- the folder of a run

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 2),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from([[], {}, [0], {"x": 0}, [[[]]]]),
)


def places(value, path=()):
    """Where something stands in JSON."""
    inside = value.items() if isinstance(value, dict) else ()
    inside = enumerate(value) if isinstance(value, list) else inside
    for key, part in inside:
        yield (*path, key)
        yield from places(part, (*path, key))


@st.composite
def replacements(draw):
    """A function that puts something odd into one place of a JSON file."""
    which, line, odd = draw(st.floats(0, 0.999)), draw(st.floats(0, 0.999)), draw(ODD)

    def replaced(data):
        lines = data.decode().splitlines() if data.count(b"\n{") else [data.decode()]
        at = int(line * len(lines))
        value = json.loads(lines[at])
        found = list(places(value))
        *path, last = found[int(which * len(found))]
        functools.reduce(lambda part, key: part[key], path, value)[last] = copy.copy(
            odd
        )
        lines[at] = json.dumps(value)
        return "".join(f"{line}\n" for line in lines).encode()

    return replaced


@pytest.fixture(scope="module")
def folder(tiny_run, tmp_path_factory):
    """A copy of a run, the states of its steps, and nobody who deletes them."""
    path = tmp_path_factory.mktemp("fuzzed") / "run"
    shutil.copytree(tiny_run, path)
    shutil.rmtree(path / "figures", ignore_errors=True)
    like = like_of(Workdir(path))
    checkpoints = Checkpoints(path / "checkpoints", read_only=True)
    states = {step: checkpoints.restore(step, like) for step in checkpoints.steps}
    checkpoints.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SECONDS_TO_DELETE", 0)
        yield path, like, states


def kinds(path):
    """The files of a run, all the data files as one kind."""
    files = {}
    for file in sorted(path.rglob("*")):
        if file.is_file():
            kind = "data" if file.parent.name == "d" else file.name
            files.setdefault(kind, []).append(file)
    return files


@fuzzed(share=0.2)
@given(st.data())
@pytest.mark.slow
def test_a_run_s_folder_is_used_whole_or_refused(folder, data):
    path, like, states = folder
    files = kinds(path)
    kind = data.draw(st.sampled_from(sorted(files)), "kind")
    file = data.draw(st.sampled_from(files[kind]), "file")
    is_json = file.suffix in (".json", ".jsonl")
    mutate = data.draw(
        st.one_of(mutations(), replacements()) if is_json else mutations()
    )
    before = {name: name.read_bytes() for name in (file, path / "metrics.jsonl")}
    file.write_bytes(mutate(before[file]))
    try:
        with not_for_ever():
            if "checkpoints" in file.parts:
                read_states(path, like, states)
            else:
                read_files(path)
    finally:
        for name, content in before.items():
            name.write_bytes(content)


def read_states(path, like, states):
    def bits(state):
        return state._replace(augment_key=jax.random.key_data(state.augment_key))

    with told_at_most(CheckpointError):
        checkpoints = Checkpoints(path / "checkpoints", read_only=True)
        try:
            step, state = checkpoints.restore_latest(like)
        finally:
            checkpoints.close()
        jax.tree.map(np.testing.assert_array_equal, bits(state), bits(states[step]))


def read_files(path):
    workdir, config = Workdir(path), configs.Config()
    with told_at_most(WorkdirError):
        config = workdir.read_config()
    with told_at_most(WorkdirError):
        workdir.check(config)
    with pytest.MonkeyPatch.context() as patch, told_at_most(WorkdirError):
        patch.setattr(Run, "_restored", lambda *_: (0, None))
        load_run(path)
    trainer._finished(config, workdir)
    trainer._tests_before(workdir)
    exit_code(report.main, str(path))
    MetricWriter(workdir.metrics, step=20, tensorboard=None).close()
    with told_at_most(WorkdirError):
        assert all(line["images_per_second"] > 0 for line in workdir.read_metrics())


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
