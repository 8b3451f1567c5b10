"""Measures time and memory of every routing algorithm, beside PyTorch.

    python benchmarks/routing.py --algorithms             at the paper's size
    python benchmarks/routing.py --algorithms --quick     small, to see whether it works
    python benchmarks/routing.py --algorithms --torch-python torch/bin/python
    python benchmarks/routing.py --algorithms em dynamic
    python benchmarks/routing.py --networks               layer by layer, likewise

PyTorch needs an environment of its own, like in ``train_step.py``. Its programs are
written anew (``peers/torch_routings.py``), eager and by ``torch.compile``. They get the
same arrays. What they compute of them is compared first, and must be the same.

Votes have the algorithm's ``vote_deviation``, if it has one. Form ``votes`` holds them,
and form ``votes_free`` does not: a row for each form that the algorithm has. Backward
makes the gradients of capsules, weight, activations and parameters.

``--networks`` measures each routed layer of the networks of ``train_step.py --tables
networks``, at its size there and with 32 images. The windows of a convolutional layer
stand in its batch. Here none is masked, and none competes with another.

The programs of one algorithm and direction run in turn, like in ``routing.py``. Compare
by "PyTorch by ours": the median over the repeats of PyTorch's time divided by ours.
PyTorch's memory is how much its process grew in the first call, at its peak, results
included; that of a compiled program would include the compiler.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import math
import operator
import os
import pathlib
import statistics
import sys
import tempfile
import unittest.mock
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from routing import (
    Problem,
    Program,
    compile_function,
    environment,
    measure,
    print_table,
)
from train_step import Contender, Worker
from worker import NETWORKS, recipe_of

from capsjax.models.network import init_variables
from capsjax.routings import ROUTINGS, Algorithm
from capsjax.routings.algorithm import parameter_shapes

# Largest difference between both sides, as a share of an array's largest number.
TOLERANCE = 1e-4
WAYS = ("eager", "compiled")  # Of PyTorch.
# Names of the gradients of pose and activation in a file for PyTorch.
GRADIENTS = ("gradient.pose", "gradient.activation")


def layers(network: str, num_images: int) -> list[tuple[Algorithm, Problem]]:
    """Returns the algorithm and the sizes of each routed layer of a network."""
    config, shape = recipe_of(network)
    model, found = config.model, []
    algorithm = type(model.routing)
    route_capsules = algorithm.from_capsules

    def note(self, capsules, weight, *others, **how):
        _, j, d, c = weight.shape
        batch = math.prod(capsules.shape[:-2])
        found.append((self, Problem(batch, capsules.shape[-2], j, d, c)))
        return route_capsules(self, capsules, weight, *others, **how)

    variables = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))
    image = jnp.zeros((num_images, *shape))
    with unittest.mock.patch.object(algorithm, "from_capsules", note):
        jax.eval_shape(lambda v: model.apply(v, image, method=model.encode), variables)
    return found


def forms(algorithm: Algorithm) -> dict[str, Algorithm]:
    """Returns the algorithm in each form in which it routes capsules."""
    if hasattr(algorithm, "form"):
        value: Any = algorithm
        return {f: dataclasses.replace(value, form=f) for f in ("votes", "votes_free")}
    casts_votes = type(algorithm).from_capsules is Algorithm.from_capsules
    return {"votes" if casts_votes else "votes_free": algorithm}


def make_operands(algorithm: Algorithm, problem: Problem):
    """Makes an algorithm's operands by name, and gradients of pose and activation."""
    random = np.random.default_rng(1)
    capsules, weight, gradient = problem.operands("float32")
    if algorithm.vote_deviation is not None:
        deviation = jnp.std(capsules) * jnp.std(weight) * math.sqrt(problem.c)
        weight = weight * (algorithm.vote_deviation / deviation)
    operands = {"capsules": capsules, "weight": weight}
    if algorithm.takes_activation:
        operands["activation"] = random.uniform(0.1, 0.9, capsules.shape[:-1])
    sizes = {letter: getattr(problem, letter) for letter in "ijcd"}
    shapes = parameter_shapes(algorithm, sizes)
    for name, parameter in algorithm.declared_parameters.items():
        start = parameter.init(jax.random.key(0), shapes[name], jnp.float32)
        operands[name] = start + 0.1 * random.normal(size=shapes[name])
    gradients = gradient, random.normal(size=gradient.shape[:-1]) / 3
    return jax.tree.map(lambda x: jnp.asarray(x, "float32"), (operands, gradients))


def route(algorithm: Algorithm, operands: dict[str, jax.Array]):
    """Returns poses and activations."""
    parameters = {name: operands[name] for name in algorithm.declared_parameters}
    routed = algorithm.from_capsules(
        operands["capsules"],
        operands["weight"],
        operands.get("activation"),
        parameters=parameters,
    )
    return routed.pose, routed.activation


def compile_form(
    algorithm: Algorithm, operands: dict[str, jax.Array], gradients, *, backward: bool
) -> Program:
    """Compiles pose and activation, perhaps with the gradients of all operands."""
    names = [*operands]

    def program(operands, gradients):
        if not backward:
            return route(algorithm, operands)
        routed, pullback = jax.vjp(functools.partial(route, algorithm), operands)
        (gradient,) = pullback(gradients)
        return *routed, *(gradient[name] for name in names)

    return compile_function(program, operands, gradients)


class Peer(Worker):
    """PyTorch in a process of its own, which is timed like a ``Program``."""

    def milliseconds(self) -> float:
        return 1e3 * self.time()["seconds"]


def name_of(algorithm: Algorithm) -> str:
    return next(name for name, one in ROUTINGS.items() if type(algorithm) is one)


def start_peers(
    algorithm: Algorithm, folder: pathlib.Path, arguments, *, backward: bool
) -> dict[str, Peer]:
    """Starts PyTorch on the arrays of a folder; leaves out what fails."""
    name = name_of(algorithm)
    options = {"algorithm": name, "given": folder / "given.npz"}
    if algorithm.num_rounds is not None:
        options["rounds"] = algorithm.num_rounds
    if backward:
        options["backward"] = True
    peers = {}
    for way in WAYS[: 1 if arguments.quick else None]:
        own = options | {"result": folder / f"{way}.npz"}
        if way == "compiled":
            own["compile"] = True
        contender = Contender(f"{name}, PyTorch {way}", own, "torch routing")
        peer = Peer(contender, arguments.torch_python, seconds=0)
        if peer.ready:
            peers[way] = peer
        else:
            print(f"{contender.name} failed: {peer.failure()}", file=sys.stderr)
            peer.close()
    return peers


def difference(found: list[Any], expected: list[Any]) -> float:
    """Returns the largest difference as a share of its array's largest number."""
    return max(
        float(np.max(np.abs(a - b)) / np.max(np.abs(b)))
        for a, b in zip(found, expected, strict=True)
    )


def compare_forms(
    name: str, algorithm: Algorithm, problem: Problem, arguments, *, backward: bool
) -> Iterable[dict[str, Any]]:
    """Yields a record for each form of an algorithm, beside PyTorch.

    Args:
        name: Name of the row.
        algorithm: The algorithm, with PyTorch's numbers, which are our defaults.
        problem: The sizes.
        arguments: The command line.
        backward: Whether gradients are made too.

    Raises:
        SystemExit: If two programs compute different numbers.
    """
    operands, gradients = make_operands(algorithm, problem)
    programs = {
        form: compile_form(own, operands, gradients, backward=backward)
        for form, own in forms(algorithm).items()
    }
    results = {form: [*p.run(*p.operands)] for form, p in programs.items()}
    peers = {}
    with contextlib.ExitStack() as stack:
        if arguments.torch_python:
            folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
            named = dict(zip(GRADIENTS, gradients, strict=True))
            np.savez(folder / "given.npz", **operands, **named)
            peers = start_peers(algorithm, folder, arguments, backward=backward)
            for way, peer in peers.items():
                stack.callback(peer.close)
                results[way] = [*np.load(folder / f"{way}.npz").values()]
        expected, *_ = results.values()
        errors = {n: difference(found, expected) for n, found in results.items()}
        for program, error in errors.items():
            if not error < TOLERANCE:
                sys.exit(
                    f"{name}: {program} differs by {error:.1e} of the largest number."
                )
        times = measure(programs | peers, arguments.repeats)
    sizes = problem._replace(rounds=algorithm.num_rounds)._asdict()
    about = environment()
    for peer in peers.values():
        about["torch"] = peer.ready["version"]
    for form, program in programs.items():
        own = times[form]
        yield {
            "name": name,
            "algorithm": name_of(algorithm),
            "form": form,
            "backward": backward,
            "problem": sizes,
            "median_ms": statistics.median(own),
            "min_ms": min(own),
            "max_ms": max(own),
            "temporary_bytes": program.temporary_bytes,
            "compile_seconds": program.compile_seconds,
            "environment": about,
            "difference": max(errors.values()),
            "torch": {
                way: {
                    "median_ms": statistics.median(times[way]),
                    "ratio": statistics.median(map(operator.truediv, times[way], own)),
                    "grown_mb": peer.ready["grown_mb"],
                }
                for way, peer in peers.items()
            },
        }


def print_algorithms(records: list[dict[str, Any]]) -> None:
    about = records[0]["environment"]
    print("Environment:", ", ".join(f"{k} {v}" for k, v in about.items()))
    worst = max(r["difference"] for r in records)
    print(f"All programs of an algorithm agree to {worst:.0e} of the largest.\n")

    def row(record):
        problem = record["problem"]
        rounds = f", {problem['rounds']} rounds" if problem["rounds"] else ""
        yield record["name"] + rounds
        yield "{batch} x {i} x {c} to {j} x {d}".format(**problem)
        yield record["form"]
        low, high = record["min_ms"], record["max_ms"]
        yield f"{record['median_ms']:.1f} ({low:.1f} - {high:.1f})"
        yield f"{record['temporary_bytes'] / 1e6:.1f}"
        yield f"{record['compile_seconds']:.1f}"
        eager, compiled = (record["torch"].get(way) for way in WAYS)
        yield f"{eager['median_ms']:.1f}" if eager else ""
        yield f"{eager['ratio']:.2f}" if eager else ""
        yield f"{eager['grown_mb']:.0f}" if eager else ""
        yield f"{compiled['median_ms']:.1f}" if compiled else ""
        yield f"{compiled['ratio']:.2f}" if compiled else ""

    for backward in (False, True):
        print_table(
            f"algorithm, forward{' + backward' * backward} | batch x inputs | form "
            "| ms, median (min - max) | temporary MB | compile s "
            "| PyTorch, ms | PyTorch by ours | PyTorch, MB "
            "| compiled PyTorch, ms | compiled PyTorch by ours",
            (" | ".join(row(r)) for r in records if r["backward"] is backward),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--algorithms", nargs="*", metavar="NAME", help=", ".join(ROUTINGS))
    add("--networks", nargs="*", metavar="NAME", help=", ".join(NETWORKS))
    add("--torch-python", default=os.environ.get("TORCH_PYTHON"))
    add("--quick", action="store_true", help="small, without compiled PyTorch")
    add("--repeats", type=int, help="runs of each program")
    add("--json", metavar="FILE", help="append the records to FILE")
    arguments = parser.parse_args()
    known = {"algorithms": ROUTINGS, "networks": NETWORKS}
    for option, names in known.items():
        given = getattr(arguments, option)
        if unknown := {*(given or ())} - {*names}:
            parser.error(
                f"--{option} {' '.join(sorted(unknown))}: choose of {', '.join(names)}"
            )
        if given == []:
            setattr(arguments, option, [*names])
    arguments.repeats = arguments.repeats or (3 if arguments.quick else 10)
    problem = Problem(batch=32) if arguments.quick else Problem()
    rows = [(name, ROUTINGS[name](), problem) for name in arguments.algorithms or ()]
    for network in arguments.networks or ():
        found = layers(network, 4 if arguments.quick else 32)
        rows += [(f"{network}, layer {n}", *one) for n, one in enumerate(found, 1)]
    records = []
    for name, algorithm, sizes in rows:
        for backward in (False, True):
            print(f"{name}, backward {backward}", file=sys.stderr)
            records += compare_forms(
                name, algorithm, sizes, arguments, backward=backward
            )
    print_algorithms(records)
    if arguments.json:
        with open(arguments.json, "a") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)


if __name__ == "__main__":
    main()
