"""One contender of ``train_step.py`` in its own process: capsjax, or plain JAX.

    python benchmarks/worker.py --work train --batch 128 --dtype bfloat16 --steps 11

Prints one JSON line when it is ready; then, for each line ``run N`` on stdin, makes N
calls and prints their time. It sleeps in between, so that others can be timed. The
amounts of work in the JSON line are for one of the ``steps`` of a call.

The works: ``train`` (whole steps, as ``capsjax.train`` takes them), ``network`` (the
same of another recipe), ``inference``
(class lengths), ``routing`` (forward and backward of the class capsules); the other
parts of a step, alone, each forward and backward; ``gemm`` and ``memory``, the limits
of the machine; and ``check``, numbers to compare with another program's.
"""

import argparse
import dataclasses
import functools
import importlib.util
import json
import pathlib
import resource
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from peers import plain_jax

from capsjax import DynamicRouting, squash
from capsjax import config as configs
from capsjax.data import Dataset
from capsjax.data.augment import NoAugmentation, Shift, Warp, scale_to_unit
from capsjax.layers import Convolution, Decoder, Stem
from capsjax.losses import fitting_loss, reconstruction_loss
from capsjax.models import StemCapsNet, num_parameters, prepare
from capsjax.models.network import activation_kind, bind
from capsjax.runtime.devices import parallel, replicated
from capsjax.training.feed import stack_batches
from capsjax.training.state import init_state, split_weights
from capsjax.training.step import make_train_chunk, make_train_step

IMAGE, CLASSES = (28, 28, 1), 10
# Multiplications for one image, forward, by the formulas. The backward pass of a
# product takes two more, but the gradient of the image itself is not needed.
CONV = 20 * 20 * 256 * 81
PRIMARY = 6 * 6 * 256 * 81 * 256
ROUTING = 1152 * 10 * 16 * (8 + 3 + 2)  # votes, three sums, two agreements
DECODER = 160 * 512 + 512 * 1024 + 1024 * 784
TRAIN = 2 * CONV + 3 * (PRIMARY + ROUTING + DECODER)


# Recipes of other networks, and the size of their images.
NETWORKS = {
    "efficient": ("mnist.py:efficient", IMAGE),
    "stacked": ("stacks.py", IMAGE),
    "matrix": ("stacks.py:matrix", IMAGE),
    "photos": ("photos.py", (128, 128, 3)),
}


def random_data(shape=IMAGE, number=2048):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (number, *shape), np.uint8)
    label = rng.integers(0, CLASSES, number).astype(np.int32)
    return Dataset("random", image, label, tuple("0123456789"))


def make_config(batch, dtype, stem=None):
    config = configs.Config(batch_size=batch)
    if stem:
        config.model = StemCapsNet(stem=Stem(features=stem_features(stem)))
    config.model = config.model.clone(compute_dtype=dtype)
    return config


def stem_features(width):
    return width, width, 2 * width, 4 * width


def stem_multiplications(width):
    """Counts a step's: the products of the stem, and the capsules' and decoder's."""
    first, one, two, four = 784 * 25 * width, width, 2 * width, 4 * width
    blocks = 784 * one * one + 196 * (one * one + one * two)
    blocks += 49 * (two * two + two * four) + 16 * four * four
    primary, routing = 16 * four * 512, 1024 * 10 * 16 * (8 + 3 + 2)
    return 2 * first + 3 * (9 * blocks + primary + routing + DECODER)


def make_state(config, num_steps=10_000):
    model = config.model
    if not model.num_classes:
        model = bind(model, IMAGE, CLASSES)
    optimizer = config.optimizer.make(num_steps)
    init = functools.partial(init_state, model, optimizer, config)
    return model, optimizer, jax.jit(init, out_shardings=replicated())()


def make_chunk(model, optimizer, config):
    """Joins several steps into one call, like the trainer."""
    loss = fitting_loss(config.loss, activation_kind(model))
    step = make_train_step(model, optimizer, config, loss, num_steps=10_000)
    return make_train_chunk(step)


def train(arguments):
    config, dataset = (
        make_config(arguments.batch, arguments.dtype, arguments.stem),
        random_data(),
    )
    call, work = train_on(config, dataset, arguments.steps)
    count = stem_multiplications(arguments.stem) if arguments.stem else TRAIN
    return call, work | {"multiplications": arguments.batch * count}


def train_on(config, dataset, num_steps):
    model, optimizer, state = make_state(config)
    program = parallel(make_chunk(model, optimizer, config), donate=True)
    done = 0

    def call():
        nonlocal state, done
        steps = range(done, done + num_steps)
        batches = stack_batches(dataset, steps, batch_size=config.batch_size, seed=0)
        state, outcome = program(state, batches)
        done = steps.stop
        return jax.tree.map(np.asarray, outcome)

    weights, _ = split_weights(state.params)
    # At least the state goes in and out.
    return call, {
        "steps": num_steps,
        "images": config.batch_size,
        "bytes": 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
        "parameters": num_parameters(weights),
    }


def recipe_of(network):
    """Returns the config of a network, made for images of ten classes, and their size.

    The images are not changed.
    """
    name, shape = NETWORKS[network]
    path, _, variant = name.partition(":")
    path = pathlib.Path(__file__).resolve().parents[1] / "experiments" / path
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(variant)
    config.augmentation = NoAugmentation()
    config.model = bind(config.model, shape, CLASSES)
    return config, shape


def network(arguments):
    """Steps of another recipe."""
    config, shape = recipe_of(arguments.network)
    config = dataclasses.replace(config, batch_size=arguments.batch)
    return train_on(config, random_data(shape, 512), arguments.steps)


def inference(arguments):
    model, _, state = make_state(
        make_config(arguments.batch, arguments.dtype, arguments.stem)
    )
    image = random_data().image[: arguments.batch]
    encode = jax.jit(functools.partial(model.apply, method=model.encode))
    encode = functools.partial(encode, state.params)
    if arguments.prepared:
        encode = prepare(model, state.params, batch_size=arguments.batch)
    work = {"images": arguments.batch}
    work["multiplications"] = arguments.batch * (CONV + PRIMARY + ROUTING)
    return lambda: np.asarray(encode(image / np.float32(255)).activation), work


# ---- parts of a step


def part(function, arguments, multiplications, *differentiated, fixed=()):
    """Returns a call of a function and its gradient, and the work in it."""
    value = jax.eval_shape(function, *differentiated, *fixed)
    gradient = jnp.ones(value.shape, value.dtype)

    @jax.jit
    def both(differentiated, fixed, gradient):
        value, vjp = jax.vjp(lambda *d: function(*d, *fixed), *differentiated)
        return value, vjp(gradient)

    operands = differentiated, fixed, gradient
    return call_of(both, operands, arguments, multiplications)


def call_of(program, operands, arguments, multiplications=0):
    leaves = jax.tree.leaves((operands, jax.eval_shape(program, *operands)))
    return lambda: jax.block_until_ready(program(*operands)), {
        "images": arguments.batch,
        "multiplications": arguments.batch * multiplications,
        "bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in leaves),
    }


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def augmenting(augmentation, arguments):
    """Draws and applies changes of images, and scales them, as the step does."""
    image = jnp.asarray(random_data().image[: arguments.batch])

    def program(key, image):
        drawn = augmentation.draw(key, len(image), IMAGE, jnp.float32(0))
        return scale_to_unit(augmentation.apply(image, drawn))

    return call_of(jax.jit(program), (jax.random.key(0), image), arguments)


def conv(arguments):
    image = jnp.abs(normal(arguments.batch, *IMAGE))
    layer = Convolution(256, 9, compute_dtype=arguments.dtype)
    params = layer.init(jax.random.key(0), image)

    def function(params, bias, image):
        return jax.nn.relu(layer.apply(params, image) + bias)

    return part(function, arguments, 2 * CONV, params, jnp.zeros(256), fixed=(image,))


def primary(arguments):
    image = jax.nn.relu(normal(arguments.batch, 20, 20, 256))
    layer = Convolution(256, 9, 2, compute_dtype=arguments.dtype)
    params = layer.init(jax.random.key(0), image)
    return part(layer.apply, arguments, 3 * PRIMARY, params, image)


def squashing(arguments):
    return part(squash, arguments, 0, normal(arguments.batch, 1152, 8))


def routing(arguments):
    capsules = squash(normal(arguments.batch, 1152, 8))
    weight = 0.02 * normal(1152, CLASSES, 16, 8)
    route = DynamicRouting().from_capsules
    if arguments.program == "plain":
        route = plain_jax.route

    def function(capsules, weight):
        return route(capsules, weight).pose

    return part(function, arguments, 3 * ROUTING, capsules, weight)


def decoder(arguments):
    pose = squash(normal(arguments.batch, CLASSES, 16))
    mask = jax.nn.one_hot(jnp.arange(arguments.batch) % CLASSES, CLASSES)
    image = jax.random.uniform(jax.random.key(1), (arguments.batch, *IMAGE))
    layer = Decoder(IMAGE, compute_dtype=arguments.dtype)
    params = layer.init(jax.random.key(0), pose, mask)

    def function(params, pose, mask, image):
        return reconstruction_loss(layer.apply(params, pose, mask), image)

    return part(function, arguments, 3 * DECODER, params, pose, fixed=(mask, image))


def adam(arguments):
    """Updates in place if all is finite, as the step does."""
    _, optimizer, state = make_state(
        make_config(arguments.batch, arguments.dtype, arguments.stem)
    )
    weights, _ = split_weights(state.params)
    grads = jax.tree.map(jnp.ones_like, weights)

    @functools.partial(jax.jit, donate_argnums=0)
    def update(held, grads):
        params, opt_state = held
        updates, opt_state = optimizer.update(grads, opt_state, params)
        new = optax.apply_updates(params, updates), opt_state
        squares = [jnp.vdot(x, x) for x in jax.tree.leaves(grads)]
        is_finite = jnp.isfinite(jnp.stack(squares)).all()
        return jax.tree.map(functools.partial(jnp.where, is_finite), new, held)

    held = weights, state.opt_state
    _, work = call_of(update, (held, grads), arguments)

    def call():
        nonlocal held
        held = jax.block_until_ready(update(held, grads))

    return call, work


# ---- the machine


def gemm(arguments):
    size = 2048
    a, b = normal(2, size, size).astype(arguments.dtype)
    # Into float32: the only bfloat16 product that XLA has a fast kernel for.
    product = jax.jit(functools.partial(jnp.dot, preferred_element_type=jnp.float32))
    work = {"multiplications": size**3}
    return lambda: jax.block_until_ready(product(a, b)), work


def memory(arguments):
    """Reads and writes 256 MB in place."""
    held = jnp.zeros(2**26)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)

    def call():
        nonlocal held
        held = jax.block_until_ready(add(held))

    return call, {"bytes": 2 * held.nbytes}


# ---- plain JAX


def by_layer(state):
    """Returns the weights in the peers' order, without our nesting."""
    params = state.params["params"]
    conv, primary, dense = (params[n] for n in ("conv", "primary_caps", "decoder"))
    return {
        "conv": conv | {"bias": params["conv_bias"]},
        "primary": primary["conv"] | {"bias": primary["bias"]},
        "weight": params["class_caps"]["weight"],
        **{f"decoder.{2 * i}": dense[f"Dense_{i}"] for i in range(3)},
    }


def plain_train(arguments):
    dataset = random_data()
    params = by_layer(
        make_state(make_config(arguments.batch, arguments.dtype, arguments.stem))[2]
    )
    held = params, plain_jax.OPTIMIZER.init(params)
    rng = np.random.default_rng(0)

    def call():
        nonlocal held
        batch = dataset.batch(rng.integers(0, len(dataset), arguments.batch))
        *held, loss = plain_jax.train_step(*held, batch.image, batch.label)
        return float(loss)

    work = {"images": arguments.batch}
    return call, work | {"multiplications": arguments.batch * TRAIN}


def plain_inference(arguments):
    params = by_layer(
        make_state(make_config(arguments.batch, arguments.dtype, arguments.stem))[2]
    )
    image = random_data().image[: arguments.batch]
    _, work = inference(arguments)
    return lambda: np.asarray(plain_jax.class_lengths(params, image)), work


# ---- the same numbers as another program


def check(arguments):
    """Prints class lengths, then the losses of four steps on a batch without shifts.

    Writes weights and batch to ``--file``, with PyTorch's names and layout.
    """
    config = make_config(arguments.batch, arguments.dtype, arguments.stem)
    config.augmentation = NoAugmentation()
    config.optimizer = dataclasses.replace(config.optimizer, schedule="constant")
    batch = random_data().batch(np.arange(arguments.batch))
    model, optimizer, state = make_state(config)
    params = by_layer(state)
    if arguments.program == "plain":
        length = plain_jax.class_lengths(params, batch.image)
        held, losses = (params, plain_jax.OPTIMIZER.init(params)), []
        for _ in range(4):
            *held, loss = plain_jax.train_step(*held, batch.image, batch.label)
            losses.append(float(loss))
    else:
        np.savez(arguments.file, **for_torch(params), **images_for_torch(batch))
        routed = model.apply(state.params, batch.image / 255, method=model.encode)
        length = routed.activation
        chunk = make_chunk(model, optimizer, config)
        batches = jax.tree.map(lambda a: np.stack([a] * 4)[None], batch)
        losses = parallel(chunk)(state, batches)[1].metrics.loss.tolist()
    print(json.dumps({"length": length.tolist(), "loss": losses}))


def for_torch(params):
    given = {"weight": params.pop("weight")}
    for name, layer in params.items():
        kernel = np.asarray(layer["kernel"])
        axes = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
        given[f"{name}.weight"] = kernel.transpose(axes)
        given[f"{name}.bias"] = layer["bias"]
    return given


def images_for_torch(batch):
    return {
        "image": batch.image.transpose(0, 3, 1, 2),
        "label": batch.label.astype(int),
    }


# ---- the service

PARTS = {
    "shift": functools.partial(augmenting, Shift()),
    "warp": functools.partial(augmenting, Warp()),
    "elastic": functools.partial(augmenting, Warp(elastic=1.0)),
    "conv": conv,
    "primary": primary,
    "squash": squashing,
    "routing": routing,
    "decoder": decoder,
    "adam": adam,
}
WORKS = {
    "capsjax": {
        **{"train": train, "inference": inference, "gemm": gemm, "memory": memory},
        "network": network,
        **PARTS,
    },
    "plain": {"train": plain_train, "inference": plain_inference, "routing": routing},
}


def seconds_of(call, times=1):
    started = time.perf_counter()
    for _ in range(times):
        call()
    return time.perf_counter() - started


def serve(call, work):
    """Serves with the same loop as ``peers/torch_capsnet.py``."""
    first, again = seconds_of(call), seconds_of(call)
    work |= {"compile_seconds": first - again, "call_seconds": again}
    print(json.dumps(work | {"version": jax.__version__}), flush=True)
    for line in sys.stdin:
        before = time.process_time()
        seconds = seconds_of(call, int(line.split()[1]))
        cpu = time.process_time() - before
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        answer = {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak}
        print(json.dumps(answer), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", choices=WORKS, default="capsjax")
    parser.add_argument("--work", choices=[*WORKS["capsjax"], "check"], required=True)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--stem", type=int, help="channels of a stem in its place")
    parser.add_argument("--network", choices=NETWORKS, help="for the work network")
    parser.add_argument("--steps", type=int, default=1, help="in one call")
    parser.add_argument("--prepared", action="store_true", help="kernels, to infer")
    parser.add_argument("--devices", type=int, default=1, help="simulated on the CPU")
    parser.add_argument("--file", help="where to write weights and images to check")
    arguments = parser.parse_args()
    if jax.config.jax_platforms in (None, "cpu"):
        jax.config.update("jax_num_cpu_devices", arguments.devices)
    if arguments.work == "check":
        check(arguments)
    else:
        serve(*WORKS[arguments.program][arguments.work](arguments))


if __name__ == "__main__":
    main()
