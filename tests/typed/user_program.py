# pyright: strict
"""A program of a user with every public name: pyright accepts it in its strict mode."""

import jax
import numpy as np

import capsjax
from capsjax import (
    DEVICE_AXIS,
    ROUTINGS,
    CapsNet,
    CapsuleHead,
    ClassCaps,
    ConvCaps,
    Decoder,
    DeconvCaps,
    DenseCaps,
    DynamicRouting,
    EMRouting,
    InvertedAttention,
    PrimaryCaps,
    PrimaryPoses,
    Routed,
    SelfAttention,
    SelfRouting,
    UniformRouting,
    VariationalBayesRouting,
    diagnostics,
    flatten_capsules,
    load_pretrained,
    load_run,
    margin_loss,
    memory_estimate,
    reconstruction_loss,
    routing,
    safe_norm,
    save_run,
    squash,
    tweak_pose,
)
from capsjax.config import AdamW, Config, Data
from capsjax.data import Dataset, load
from capsjax.models import num_parameters
from capsjax.routings import Algorithm
from capsjax.training import train

# Functions.
key = jax.random.key(0)
votes = jax.random.normal(key, (32, 1152, 10, 16))
routed: Routed = routing(votes, num_iterations=3)
length: jax.Array = routed.activation
pose: jax.Array = squash(np.zeros((32, 10, 16), np.float32))
same: jax.Array = safe_norm(pose)
label = np.zeros(32, np.int32)
loss: jax.Array = margin_loss(length, label)
image = np.zeros((32, 28, 28, 1), np.float32)
loss = loss + 0.0005 * reconstruction_loss(image, image, reduction="sum")
tweaked: jax.Array = tweak_pose(pose, num_steps=5)

# Algorithms.
algorithms: list[Algorithm] = [
    DynamicRouting(num_iterations=3),
    UniformRouting(),
    SelfAttention(),
    InvertedAttention(num_iterations=2),
    EMRouting(num_iterations=2),
    VariationalBayesRouting(),
    SelfRouting(),
    ROUTINGS["em"](),
]
routed = EMRouting(num_iterations=2)(votes, np.ones((32, 1152), np.float32))

# Layers and networks.
layers = [
    PrimaryCaps(num_types=32, dim=8),
    PrimaryPoses(num_types=8, dim=16),
    DenseCaps(num_capsules=10, dim=16, routing=algorithms[0]),
    ConvCaps(num_types=8, dim=16, routing=EMRouting()),
    DeconvCaps(num_types=2, dim=16, routing=DynamicRouting()),
    ClassCaps(num_capsules=10, dim=16),
    CapsuleHead(num_capsules=10),
    Decoder(image_shape=(28, 28, 1)),
]
flat, _ = flatten_capsules(np.zeros((32, 6, 6, 32, 8), np.float32))
network = CapsNet(image_shape=(28, 28, 1), num_classes=10)
# Flax does not tell the type of all arguments.
variables = network.init(key, image)  # pyright: ignore[reportUnknownMemberType]
print(num_parameters(variables), memory_estimate(network, 128), DEVICE_AXIS)

# Runs.
config = Config(data=Data(num_validation=-1), model=network, optimizer=AdamW())
test_set = load("mnist", "test")
print(len(test_set))
digits = Dataset("digits", np.zeros((64, 28, 28), np.uint8), np.arange(64) % 10)
for run in (
    train(config, "runs/x", (digits, digits)),
    load_run("runs/x"),
    load_pretrained("mnist"),
    save_run("runs/y", network, variables, class_names=tuple("0123456789")),
):
    prediction = run.predict(np.zeros((1, 28, 28, 1), np.float32))
    answer: np.ndarray = prediction.label
    print(answer, prediction.pose)

# Measures.
coupling = np.full((32, 1152, 10), 0.1, np.float32)
print(diagnostics.coupling_entropy(coupling), capsjax.diagnostics.Statistics)
print(layers, flat, same, tweaked, loss)
