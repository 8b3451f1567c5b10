"""What is wrong with an argument, in one line that names it.

The type checker of these tests would refuse the arguments first, hence the subprocess.
"""

import json
import subprocess
import sys

import pytest

CASES = {
    "DenseCaps(10, 16).init(key, z(8))": "capsules must have the axes [*batch, i, c], ",
    "DenseCaps(10, 16, 'dynamic').init(key, z(4, 8))": (
        "routing must be a value, such as DynamicRouting(), got 'dynamic'."
    ),
    "DenseCaps(10, 16, EMRouting).init(key, z(4, 8))": "EMRouting'>: write EMRouting()",
    "CapsNet((28, 28, 1), 10, routing=EMRouting).init(key, z(1, 28, 28, 1))": (
        "routing must be a value, such as DynamicRouting(), got <class "
    ),
    "CapsNet((28, 28), 10).init(key, z(1, 28, 28))": (
        "CapsNet needs image_shape=(height, width, channels) and num_classes, got "
    ),
    "PrimaryCaps().init(key, z(28, 28))": "image must have the axes [*batch, h, w, c]",
    "PrimaryCaps().init(key, z(5, 5, 3))": (
        "image must be at least as large as the kernel, 9x9, got shape (5, 5, 3)."
    ),
    "Decoder((9, 9)).init(key, z(3, 2, 4), z(3, 2))": (
        "image_shape must be (height, width, channels), got (9, 9)."
    ),
    "Decoder((9, 9, 1)).init(key, z(4), z())": "pose must have the axes [*batch, j, d]",
    "Decoder((9, 9, 1)).init(key, z(3, 2, 4), z(3))": (
        "mask must have one number for each capsule, [*batch, j] = (3, 2), got shape (3"
    ),
    "squash(1.0)": "s must have vectors along axis -1, got shape ().",
    "safe_norm(z(3), axis=1)": "x must have vectors along axis 1, got shape (3,).",
    "EMRouting()(z(4, 10, 16))": (
        "EMRouting needs the inputs' activations: give activation, [*batch, i] = (4,)."
    ),
    "SelfRouting()(z(4, 10, 16))": "SelfRouting makes its logits of the input capsules",
    "SelfRouting().from_capsules(z(4, 8), z(4, 10, 16, 8))": (
        "SelfRouting needs the inputs' activations: give activation, [*batch, i] = (4,)"
    ),
    "DenseCaps(10, 16, EMRouting()).init(key, z(4, 8))": (
        "EMRouting needs the inputs' activations: give activation, [*batch, i]"
    ),
    "margin_loss(0.5, 0)": "length must have the axes [*batch, n], got shape ().",
    "spread_loss(0.5, 0)": "probability must have the axes [*batch, n], got shape ().",
    "cross_entropy(0.5, 0)": "logit must have the axes [*batch, n], got shape ().",
    "reconstruction_loss(z(3), z(3))": "image must have the axes [*batch, h, w, c], ",
}
PROGRAM = """
import json, sys
import jax, numpy as np
from capsjax import *
from capsjax.losses import *
key, z, messages = jax.random.key(0), lambda *shape: np.zeros(shape, np.float32), {}
for case in json.load(sys.stdin):
    try:
        messages[case] = repr(eval(case))
    except Exception as error:
        messages[case] = str(error)
print(json.dumps(messages))
"""


@pytest.fixture(scope="module")
def messages():
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([*CASES]),
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(run.stdout)


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_argument_is_named_in_a_line(messages, case):
    assert CASES[case] in messages[case]
    assert "\n" not in messages[case]
