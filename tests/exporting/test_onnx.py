"""Networks as ONNX files: what onnxruntime computes from them, beside JAX."""

import json
import re
import shutil
import subprocess

import jax
import numpy as np
import onnxruntime
import pytest
from exported import IMAGE, draw_images, run_of, small
from marks import first_of
from PIL import Image
from places import ROOT

import capsjax
from capsjax import ROUTINGS, CapsNet, export
from capsjax.data import load
from capsjax.data.preparation import Preparation
from capsjax.exporting import onnx
from capsjax.exporting.comparison import Comparison
from capsjax.exporting.errors import ExportError
from capsjax.exporting.functions import functions
from capsjax.exporting.onnx_network import models
from capsjax.exporting.serving_card import card, readme
from capsjax.exporting.serving_folder import require_folder, write_folder
from capsjax.layers import Stem
from capsjax.models import (
    BaselineCNN,
    EfficientCapsNet,
    ResidualCapsNet,
    StackedCapsNet,
    StemCapsNet,
    StemCNN,
)
from capsjax.routings import (
    DynamicRouting,
    EMRouting,
    InvertedAttention,
    SelfAttention,
    SelfRouting,
    UniformRouting,
    VariationalBayesRouting,
)
from capsjax.storage.files import WorkdirError

CNN = BaselineCNN(IMAGE, 4, (4, 5), conv_kernel=4, hidden_features=(9, 8))
EFFICIENT = EfficientCapsNet(
    IMAGE, 4, (3, 5), primary_types=3, primary_dim=4, decoder_features=(7,)
)
STACK = StackedCapsNet(
    *(IMAGE, 4),
    conv_features=6,
    conv_kernel=3,
    conv_stride=1,
    primary_types=2,
    primary_stride=2,
    dim=4,
    layer_types=(3,),
    layer_kernels=(3,),
)
MATRICES = STACK.clone(
    routing=EMRouting(),
    primary_stride=1,
    padding="VALID",
    drop_edge=True,
    layer_types=(3, 2),
    layer_kernels=(3, 2),
    layer_strides=(2, 1),
    compete="image",
    pose="matrix",
    share_positions=True,
    coordinates=1.0,
)
STEM = Stem((5, 6), (1, 2), first_kernel=3)
NETWORKS = {
    "dynamic": small(),
    "dynamic, bias, none of the above": small(
        routing=DynamicRouting(2, bias=0.1, none_of_the_above=True)
    ),
    "dynamic, one round": small(routing=DynamicRouting(1)),
    "uniform": small(routing=UniformRouting(bias=0.1)),
    "self-attention": small(routing=SelfAttention(0.7)),
    "self-attention without bias": small(routing=SelfAttention(bias=None)),
    "inverted attention": small(routing=InvertedAttention(3)),
    "self-routing": small(routing=SelfRouting()),
    "EM": small(routing=EMRouting(num_iterations=3)),
    "the paper's EM": small(routing=EMRouting(mass="sum")),
    "variational Bayes": small(routing=VariationalBayesRouting()),
    "the notebook": small(
        primary_relu=True, primary_scale=0.5, primary_stride=1, primary_kernel=4
    ),
    "bfloat16": small(compute_dtype="bfloat16"),
    "one matrix for each output, no decoder": small(
        share_weight=True, decoder_features=None, routing=EMRouting()
    ),
    "CNN": CNN,
    "CNN with steps": CNN.clone(conv_strides=(1, 2)),
    "CNN without padding": CNN.clone(conv_strides=(2, 1), conv_padding="VALID"),
    "efficient": EFFICIENT,
    "stack": STACK,
    "stack, the whole image": STACK.clone(compete="image"),
    "stack, uniform": STACK.clone(routing=UniformRouting(), compete="image"),
    "stack, none of the above": STACK.clone(
        routing=DynamicRouting(none_of_the_above=True), norm="batch"
    ),
    "stack, self-attention": STACK.clone(routing=SelfAttention(), compete="image"),
    "stack, inverted attention": STACK.clone(
        routing=InvertedAttention(), norm="layer", compete="image"
    ),
    "stack, self-routing": STACK.clone(
        routing=SelfRouting(), norm="batch", share_positions=True, coordinates=0.5
    ),
    "stack, EM": STACK.clone(routing=EMRouting(), norm="batch", compete="image"),
    "stack, variational Bayes": STACK.clone(
        routing=VariationalBayesRouting(), norm="layer"
    ),
    "matrix": MATRICES,
    "matrix, window": MATRICES.clone(compete="window", share_positions=False),
    "residual": ResidualCapsNet(IMAGE, 4, (5, 6), primary_types=2, primary_dim=4),
    "residual, EM": ResidualCapsNet(
        *(IMAGE, 4, (5, 6), 2, 3, 1),
        primary_types=2,
        share_positions=False,
        routing=EMRouting(),
    ),
    "stem": StemCapsNet(
        *(IMAGE, 4, STEM), primary_types=2, primary_dim=5, decoder_features=(7,)
    ),
    "stem CNN": StemCNN(IMAGE, 4, STEM, hidden_features=(9,)),
    "stem CNN, plain": StemCNN(
        *(IMAGE, 4, Stem((5, 6), (3, 1), residual=False, batch_norm=False)),
        hidden_features=(),
    ),
}
SLOWER = (
    *("dynamic, one round", "self-attention without bias", "the paper's EM"),
    *("dynamic", "bfloat16", "CNN without padding"),
    # tests/exporting/test_each_network.py has one of each.
    *(name for name in NETWORKS if name.startswith(("stack", "matrix", "res", "stem"))),
)
QUICK = [name for name in NETWORKS if name not in SLOWER]


def opened(model):
    """The function of an ONNX file, from arrays by name to arrays by name."""
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [one.name for one in session.get_outputs()]
    return lambda **arrays: dict(zip(names, session.run(None, arrays), strict=True))


def assert_same(found, expected, **tolerance):
    assert found.keys() <= expected.keys()
    for name, array in found.items():
        assert array.shape == expected[name].shape
        assert array.dtype == expected[name].dtype
        scale = max(1, np.abs(expected[name]).max())
        options = {"rtol": 0, "atol": 2e-5 * scale, **tolerance}
        np.testing.assert_allclose(array, expected[name], **options, err_msg=name)


@pytest.mark.parametrize("name", first_of(QUICK, NETWORKS))
def test_each_file_computes_what_jax_computes_for_any_batch(name, tmp_path):
    run = run_of(NETWORKS[name], tmp_path)
    made = {part: opened(model) for part, model in models(run).items()}
    image = draw_images(7)
    expected = jax.jit(functions(run)["network"])(image)
    expected = {part: np.asarray(one) for part, one in expected.items()}
    # The images make a difference.
    assert expected["activation"].std(0).max() > 1e-3
    assert_same(made["network"](image=image), expected)
    assert_same(made["encode"](image=image), expected)
    assert_same(
        made["network"](image=image[1:2]),
        {part: one[1:2] for part, one in expected.items()},
    )
    if "drawing" in expected:
        mask = np.eye(4, dtype=np.float32)[expected["label"]]
        drawn = made["decode"](pose=expected["pose"], mask=mask)
        assert_same(drawn, expected)
    else:
        assert [*made] == ["encode", "network"]


def test_a_network_for_several_classes_has_the_probability_of_each(tmp_path):
    run = run_of(small(routing=InvertedAttention(1)), tmp_path)
    run.num_shown = 2
    # The layer norm adds to a variance, which only short votes show.
    weights = run.params["params"]["class_caps"]
    weights["weight"] = 0.01 * weights["weight"]
    image = draw_images(3)
    expected = jax.jit(functions(run)["encode"])(image)
    found = opened(models(run)["encode"])(image=image)
    assert_same(found, expected)
    assert np.abs(found["activation"].sum(-1) - 1).max() > 0.1


@pytest.mark.parametrize("name", ROUTINGS)
def test_capsules_of_length_zero_are_finite_and_the_first_class_is_the_label(
    name, tmp_path
):
    run = run_of(small(routing=ROUTINGS[name]()), tmp_path)
    run.params = jax.tree.map(lambda one: 0 * one, run.params)
    found = opened(models(run)["network"])(image=draw_images(2))
    assert all(np.isfinite(one).all() for one in found.values())
    apart = np.ptp(found["activation"], axis=-1)
    assert (apart < 1e-6).all()
    if name != "variational_bayes":  # Its last bits differ.
        assert (apart == 0).all()
        assert not found["label"].any()


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    words = ["--workdir", str(tiny_run), "--format", "onnx", "--output", str(folder)]
    assert export.main(words) == 0
    return capsjax.load_run(tiny_run), folder


def test_the_files_predict_and_draw_as_the_run_does(exported):
    run, folder = exported
    names = ["encode.onnx", "decode.onnx", "network.onnx", "README.md", "card.json"]
    assert {one.name for one in folder.iterdir()} == {*names}
    image = load("mnist", "test").image[:20]
    prediction = run.predict(image)
    session = onnxruntime.InferenceSession(folder / "network.onnx")
    given = {"image": image.astype(np.float32) / 255}
    names = ["label", "activation", "pose", "drawing"]
    label, *found = session.run(names, given)
    np.testing.assert_array_equal(label, prediction.label)
    drawing = run.draw(prediction.pose, prediction.label)
    for one, expected in zip(found, [*prediction[1:], drawing], strict=True):
        np.testing.assert_allclose(one, expected, rtol=0, atol=1e-5)


def test_the_card_has_what_who_serves_it_needs(exported):
    run, folder = exported
    about = json.loads((folder / "card.json").read_text())
    assert about["class_names"] == [*"0123456789"]
    assert about["activation"] == "length"
    assert (about["present"], about["num_shown"]) == (0.5, 1)
    assert about["preparation"] == run.preparation.to_json()
    image = {"type": "float32", "shape": ["batch", 28, 28, 1]}
    assert about["files"]["network.onnx"]["inputs"] == {"image": image}
    for name, part in about["files"].items():
        session = onnxruntime.InferenceSession(folder / name)
        for side, arrays in (
            ("inputs", session.get_inputs()),
            ("outputs", session.get_outputs()),
        ):
            assert {one.name: one.shape for one in arrays} == {
                key: array["shape"] for key, array in part[side].items()
            }
    compared = about["compared"]
    assert compared["images"].startswith("200 test images of ")
    assert compared["num_same_labels"] == compared["num_images"] == 200
    assert max(compared["differences"].values()) < 1e-5
    text = (folder / "README.md").read_text()
    assert "200 of 200 labels as in JAX on 200 test images" in text
    assert "Divide by 255: float32 from 0 to 1, [batch, 28, 28, 1]." in text


def test_the_card_describes_drawn_and_cropped_images(tmp_path):
    run = run_of(small(), tmp_path)
    run.image_shape, run.preparation = (20, 20, 1), Preparation.of("mnist", (20, 20, 1))
    comparison = Comparison("2 test images", 2, 2, {"activation": 0.0})
    text = readme(run, card(run, "onnx", "float32", comparison), comparison)
    for words in (
        "1. Turn the picture as its camera was held (EXIF), with 8 bits a channel: gre",
        "28 x 28 pixels, light on black, its centre of mass in the middle. Make any ot",
        "Scale the longer side to 20 pixels (Pillow's Lanczos)",
        "7. Scale to 20 x 20 pixels",
        "8. Cut out the middle, 12 x 11 pixels.\n9. Divide by 255",
        "2 of 2 labels as in JAX on 2 test images; largest differences: activation 0.0",
    ):
        assert words in text


@pytest.fixture
def served(exported, tmp_path, monkeypatch):
    """A folder as the page about serving has it, and the answer to its digit."""
    run, folder = exported
    digit = load("mnist", "test").image[0]
    Image.fromarray(digit[..., 0]).save(tmp_path / "digit.png")
    (tmp_path / "digit.bytes").write_bytes(digit.tobytes())
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / "mnist-seed0-onnx").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    prediction = run.predict(digit)
    return f"{prediction.label[0]} {prediction.activation.max():.4f}\n"


def page_program(language):
    page = (ROOT / "docs" / "serving.md").read_text()
    return re.search(rf"```{language}\n(.*?)```", page, re.S).group(1)


def test_the_page_about_serving_is_right_in_python(served, capsys):
    exec(page_program("python"), {})
    assert capsys.readouterr().out == served


@pytest.mark.skipif(
    not (shutil.which("node") and (ROOT / "node_modules/onnxruntime-web").is_dir()),
    reason="needs node, and in the checkout: npm install --no-save onnxruntime-web",
)
def test_the_page_about_serving_is_right_in_javascript(served, tmp_path):
    (tmp_path / "node_modules").symlink_to(ROOT / "node_modules")
    (tmp_path / "serve.mjs").write_text(page_program("js"))
    words = [shutil.which("node"), "serve.mjs"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == served


@pytest.mark.parametrize(
    ("option", "share", "largest"), [("half", 0.55, 1e-3), ("int8", 0.35, 0.02)]
)
def test_smaller_weights_make_smaller_files_and_nearly_the_same(
    exported, option, share, largest, tmp_path
):
    run, folder = exported
    onnx.export(run, tmp_path, **{option: True})
    sizes = [(one / "network.onnx").stat().st_size for one in (tmp_path, folder)]
    assert sizes[0] < share * sizes[1]
    about = json.loads((tmp_path / "card.json").read_text())
    assert about["weights"] == {"half": "float16", "int8": "int8"}[option]
    assert 1e-5 < max(about["compared"]["differences"].values()) < largest


def test_a_network_that_differs_leaves_nothing_behind(exported, tmp_path, monkeypatch):
    run, _ = exported
    monkeypatch.setitem(onnx._TOLERANCE, "float16", 1e-7)
    message = r"differs by .*e-05 from JAX on 200 test images .*, and may by 1e-07: "
    with pytest.raises(ExportError, match=message):
        onnx.export(run, tmp_path / "new", half=True)
    assert not [*tmp_path.iterdir()]


def test_numbers_that_are_not_finite_are_a_difference(tmp_path):
    run = run_of(small(), tmp_path)
    run.params["params"]["class_caps"]["weight"] *= np.nan
    with pytest.raises(ExportError, match="differs by nan from JAX"):
        onnx.export(run, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_run_without_images_is_compared_on_random_ones(tmp_path, capsys):
    run = run_of(small(), tmp_path)
    onnx.export(run, tmp_path / "new")
    out, err = capsys.readouterr()
    assert err.startswith("warning: random images take the place of test images: ")
    assert out.startswith("200 of 200 labels as in JAX on 200 random images; ")
    text = (tmp_path / "new" / "README.md").read_text()
    assert "on 200 random images" in text


class Own(CapsNet):
    """May compute anything."""


class OwnRouting(DynamicRouting):
    """May compute anything."""


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (small(), {"half": True, "int8": True}, "half and int8 are both True: choose"),
        (
            small(Own),
            {},
            "the network must be CapsNet or BaselineCNN or .* for ONNX, got Own: ",
        ),
        (
            small(routing=OwnRouting()),
            {},
            "the routing must be DynamicRouting, .*, got OwnRouting: export it as stab",
        ),
    ],
)
def test_what_can_t_be_exported_is_refused_in_one_line(
    model, options, message, tmp_path
):
    run = run_of(small(), tmp_path)
    run.model = model
    with pytest.raises(ExportError, match=message):
        onnx.export(run, tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_a_folder_with_other_files_is_left_alone(exported, tmp_path):
    run, folder = exported
    require_folder(folder)
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ExportError, match="holds files of something else: choose a "):
        onnx.export(run, tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["README.md"]


def test_a_full_disk_leaves_the_folder_to_the_next_try(tmp_path, monkeypatch):
    def full(*_):
        raise WorkdirError("no room")

    run, comparison = run_of(small(), tmp_path), Comparison("images", 1, 1, {})
    monkeypatch.setattr("capsjax.exporting.serving_folder.write_text", full)
    with pytest.raises(WorkdirError, match="no room"):
        write_folder(run, tmp_path / "new", {"a": b"1"}, comparison, suffix="onnx")
    require_folder(tmp_path / "new")
