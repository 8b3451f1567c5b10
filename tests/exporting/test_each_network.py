"""Each network, exported in every format, opened again, and shown in the explorer."""

import jax
import numpy as np
import onnxruntime
import pytest
from exported import IMAGE, draw_images, run_of, small
from marks import slow

import capsjax
from capsjax import EMRouting
from capsjax.explorer.page import ExplorerError, make_page
from capsjax.exporting import onnx, safetensors, stablehlo
from capsjax.layers import Stem
from capsjax.models import (
    NETWORKS,
    BaselineCNN,
    EfficientCapsNet,
    ResidualCapsNet,
    StackedCapsNet,
    StemCapsNet,
    StemCNN,
)

STEM = Stem((5, 6), (1, 2), first_kernel=3)
STACK = {
    "conv_features": 6,
    "conv_kernel": 3,
    "primary_types": 2,
    "dim": 4,
    "layer_types": (3,),
    "layer_kernels": (3,),
}
EACH = {
    "capsnet": small(),
    "cnn": BaselineCNN(IMAGE, 4, (4, 5), conv_kernel=4, hidden_features=(9, 8)),
    "efficient": EfficientCapsNet(
        IMAGE, 4, (3, 5), primary_types=3, primary_dim=4, decoder_features=(7,)
    ),
    "residual": ResidualCapsNet(IMAGE, 4, (5, 6), primary_types=2, primary_dim=4),
    "stacked": StackedCapsNet(IMAGE, 4, **STACK),
    "stem": StemCapsNet(
        IMAGE, 4, STEM, primary_types=2, primary_dim=5, decoder_features=(7,)
    ),
    "stem_cnn": StemCNN(IMAGE, 4, STEM, hidden_features=(9,)),
    # Another form of a network above.
    "matrix": StackedCapsNet(
        *(IMAGE, 4),
        **STACK,
        routing=EMRouting(),
        compete="image",
        pose="matrix",
        share_positions=True,
        coordinates=1.0,
    ),
}


def test_no_network_is_missing():
    assert {type(model) for model in EACH.values()} == {*NETWORKS.values()}


def from_onnx(run, folder):
    onnx.export(run, folder)
    session = onnxruntime.InferenceSession(folder / "network.onnx")
    return lambda image: session.run(["activation", "label"], {"image": image})


def from_stablehlo(run, folder):
    stablehlo.export(run, folder)
    file = (folder / "network.stablehlo").read_bytes()
    call = jax.jit(jax.export.deserialize(bytearray(file)).call)
    return lambda image: [call(image)[name] for name in ("activation", "label")]


def from_safetensors(run, folder):
    safetensors.export(run, folder)
    predict = capsjax.load_run(folder).predict

    def function(image):
        prediction = predict((255 * image).astype(np.uint8))
        return prediction.activation, prediction.label

    return function


@pytest.mark.parametrize("form", [from_onnx, from_stablehlo, from_safetensors])
@pytest.mark.parametrize("name", slow(*EACH))
def test_it_is_exported_and_opened_again_with_the_same_labels(name, form, tmp_path):
    run, image = run_of(EACH[name], tmp_path), draw_images(7)
    expected = run.predict((255 * image).astype(np.uint8))
    activation, label = form(run, tmp_path / "exported")(image)
    np.testing.assert_array_equal(label, expected.label)
    np.testing.assert_allclose(activation, expected.activation, rtol=1e-3, atol=2e-5)
    # The images make a difference.
    assert np.std(activation, axis=0).max() > 1e-4


@pytest.mark.parametrize("name", EACH)
def test_the_explorer_shows_it_or_refuses_it_in_one_line(name, tmp_path):
    run = run_of(EACH[name], tmp_path)
    if name == "capsnet":
        assert "<html" in make_page(run).html
        return
    kind = type(EACH[name]).__name__
    with pytest.raises(ExplorerError, match=f"holds a {kind}.$") as refused:
        make_page(run)
    assert "\n" not in str(refused.value)
