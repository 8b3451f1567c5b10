"""The paper's capsule network in plain JAX, as one would write it first.

XLA's own convolutions, all votes at once, ``routing`` of them, ``jax.jit``: what
``train_step.py`` compares with, served by ``worker.py --program plain``.
"""

import jax
import jax.numpy as jnp
import optax

from capsjax import margin_loss, routing, squash
from capsjax.losses import reconstruction_loss
from capsjax.votes import cast_votes


def convolve(image, kernel, stride):
    return jax.lax.conv_general_dilated(
        image,
        kernel,
        (stride, stride),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def route(capsules, weight):
    return routing(cast_votes(capsules, weight))


def encode(params, image):
    conv, primary = params["conv"], params["primary"]
    hidden = jax.nn.relu(convolve(image, conv["kernel"], 1) + conv["bias"])
    s = convolve(hidden, primary["kernel"], 2) + primary["bias"]
    capsules = squash(s.reshape(len(s), -1, 8))
    return route(capsules, params["weight"])


def decode(params, pose, label, shape):
    first, second, last = (params[f"decoder.{i}"] for i in (0, 2, 4))
    mask = jax.nn.one_hot(label, pose.shape[1])
    hidden = (pose * mask[..., None]).reshape(len(pose), -1)
    for layer in (first, second):
        hidden = jax.nn.relu(hidden @ layer["kernel"] + layer["bias"])
    return jax.nn.sigmoid(hidden @ last["kernel"] + last["bias"]).reshape(shape)


def loss_fn(params, image, label):
    routed = encode(params, image)
    drawn = decode(params, routed.pose, label, image.shape)
    error = reconstruction_loss(drawn, image)
    return jnp.mean(margin_loss(routed.activation, label) + 0.0005 * error)


OPTIMIZER = optax.adam(1e-3)


@jax.jit
def train_step(params, opt_state, image, label):
    image = image.astype(jnp.float32) / 255
    loss, grads = jax.value_and_grad(loss_fn)(params, image, label)
    updates, opt_state = OPTIMIZER.update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state, loss


@jax.jit
def class_lengths(params, image):
    return encode(params, image.astype(jnp.float32) / 255).activation
