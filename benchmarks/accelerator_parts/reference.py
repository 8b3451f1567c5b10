"""The paper's mathematics, written plainly: the reference, in float64 on the CPU.

The loop of ``route`` is also a contender: what one would write without a library.
"""

import jax
import jax.numpy as jnp


def norm(x):
    return jnp.sqrt(jnp.sum(x * x, axis=-1))


def squash(s):
    length = norm(s)[..., None]
    return s * length / (1 + length * length)


def route(votes, num_iterations=3):
    logit = jnp.zeros_like(votes[..., 0])
    for _ in range(num_iterations - 1):
        pose = _pose(logit, votes)
        logit = logit + jnp.einsum("bijd,bjd->bij", votes, pose)
    return _pose(logit, votes)


def _pose(logit, votes):
    coupling = jax.nn.softmax(logit, axis=-1)
    return squash(jnp.einsum("bij,bijd->bjd", coupling, votes))


def cast(capsules, weight):
    return jnp.einsum("ijdc,bic->bijd", weight, capsules)


def route_capsules(capsules, weight, num_iterations=3):
    return route(cast(capsules, weight), num_iterations)


def convolve(image, kernel, stride=1):
    """One product for each place in the window.

    XLA's own gradient of a strided convolution takes seconds for an image on a CPU.
    """
    (rows, columns, channels, features), number = kernel.shape, len(image)
    height = (image.shape[1] - rows) // stride + 1
    width = (image.shape[2] - columns) // stride + 1
    span = (number, stride * (height - 1) + 1, stride * (width - 1) + 1, channels)

    def add(total, place):
        y, x, matrix = place
        seen = jax.lax.dynamic_slice(image, (origin, y, x, origin), span)
        return total + seen[:, ::stride, ::stride] @ matrix, None

    origin = jnp.int32(0)
    y, x = jnp.indices((rows, columns), jnp.int32).reshape(2, -1)
    total = jnp.zeros((number, height, width, features), image.dtype)
    places = y, x, kernel.reshape(-1, channels, features)
    return jax.lax.scan(add, total, places)[0]


def primary_capsules(params, image):
    s = convolve(image, params["conv"]["kernel"], 2) + params["bias"]
    return squash(s.reshape(*s.shape[:3], -1, 8))


def draw(params, pose, mask, shape):
    hidden = (pose * mask[..., None]).reshape(len(pose), -1)
    first, second, last = (params[f"Dense_{n}"] for n in range(3))
    for layer in (first, second):
        hidden = jax.nn.relu(hidden @ layer["kernel"] + layer["bias"])
    pixels = jax.nn.sigmoid(hidden @ last["kernel"] + last["bias"])
    return pixels.reshape(-1, *shape)


def margin_loss(length, is_present):
    too_short = jnp.maximum(0, 0.9 - length) ** 2
    too_long = jnp.maximum(0, length - 0.1) ** 2
    each = is_present * too_short + 0.5 * (1 - is_present) * too_long
    return each.sum(-1)


def reconstruction_loss(drawn, image):
    return ((drawn - image) ** 2).sum((1, 2, 3))


def loss(params, image, mask):
    """Of the whole network: the mean over the images."""
    kernel, bias = params["conv"]["kernel"], params["conv_bias"]
    hidden = jax.nn.relu(convolve(image, kernel) + bias)
    capsules = primary_capsules(params["primary_caps"], hidden)
    capsules = capsules.reshape(len(image), -1, 8)
    pose = route_capsules(capsules, params["class_caps"]["weight"])
    drawn = draw(params["decoder"], pose, mask, image.shape[1:])
    error = reconstruction_loss(drawn, image)
    return jnp.mean(margin_loss(norm(pose), mask) + 0.0005 * error)
