# pyright: strict
"""A program of a user: pyright accepts it in its strict mode."""

import jax
import numpy as np

import capsjax
from capsjax import (
    CapsNet,
    DenseCaps,
    DynamicRouting,
    EMRouting,
    Routed,
    load_run,
    routing,
    squash,
)

votes = jax.random.normal(jax.random.key(0), (32, 1152, 10, 16))
routed: Routed = routing(votes, num_iterations=3)
length: jax.Array = routed.activation
layer = DenseCaps(num_capsules=10, dim=16, routing=DynamicRouting(num_iterations=3))
em = EMRouting(num_iterations=2)
routed = em(votes, np.ones((32, 1152), np.float32))
pose = squash(routed.pose)
net = CapsNet(image_shape=(28, 28, 1), num_classes=10)
run = load_run("runs/x")
prediction = run.predict(np.zeros((1, 28, 28, 1), np.float32))
label: np.ndarray = prediction.label
print(capsjax.margin_loss(length, np.zeros(32, np.int32)))
pre = capsjax.load_pretrained("mnist")
print(
    pre.predict(np.zeros((1, 28, 28, 1), np.float32)).activation,
    pose,
    layer,
    net,
    label,
)
