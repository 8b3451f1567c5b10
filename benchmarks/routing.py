"""Measures time and memory of every form of dynamic routing, and the machine's limits.

    python benchmarks/routing.py                  the paper's size, about two minutes
    python benchmarks/routing.py --quick          a quarter of the batch, few repeats
    python benchmarks/routing.py --plain          beside a plain loop over einsums
    python benchmarks/routing.py --grow           cost against batch, i, j, d, c, rounds
    python benchmarks/routing.py --algorithms     every algorithm, beside PyTorch
    python benchmarks/routing.py --networks       other networks' layers, likewise
    python benchmarks/routing.py --grow --figure growth.png --json growth.jsonl

Tables in Markdown go to stdout. All programs are compiled first; then each repeat runs
every program, so that other work on the machine disturbs all alike. It runs twice; the
second run is timed, with its memory at hand. Compare rows of one run only, by "times
faster": the median over the repeats of the plain loop's time divided by the form's own.
``--algorithms`` and ``--networks``: see ``routing_algorithms.py``.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import operator
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from capsjax.routings import DynamicRouting
from capsjax.votes import cast_votes


class Problem(NamedTuple):
    """Sizes; the defaults fit the paper's network on MNIST."""

    batch: int = 128
    i: int = 1152
    j: int = 10
    d: int = 16
    c: int = 8
    rounds: int = 3

    def operands(self, dtype: str) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Makes capsules, weight and a gradient of the poses."""
        random = np.random.default_rng(0)
        shapes = (
            (self.batch, self.i, self.c),
            (self.i, self.j, self.d, self.c),
            (self.batch, self.j, self.d),
        )
        capsules, weight, gradient = (random.normal(size=s) / 3 for s in shapes)
        return (
            jnp.asarray(capsules, dtype),
            jnp.asarray(weight, dtype),
            jnp.asarray(gradient, "float32"),
        )

    @property
    def votes(self) -> int:
        """Number of components of all votes."""
        return self.batch * self.i * self.j * self.d


def einsum_loop(capsules: jax.Array, weight: jax.Array, rounds: int = 3) -> jax.Array:
    """Computes poses in the plainest way: votes, then rounds, by einsums."""
    votes = jnp.einsum("bic,ijdc->bijd", capsules, weight)
    # Without the barrier XLA spends seconds on the softmax of a constant.
    logit = jax.lax.optimization_barrier(jnp.zeros(votes.shape[:-1]))
    for n in range(rounds):
        coupling = jax.nn.softmax(logit, axis=-1)
        s = jnp.einsum("bij,bijd->bjd", coupling, votes)
        square = jnp.sum(s * s, axis=-1, keepdims=True)
        pose = square / (1 + square) * s / jnp.sqrt(square + 1e-9)
        if n + 1 < rounds:
            logit = logit + jnp.einsum("bijd,bjd->bij", votes, pose)
    return pose


class Form(NamedTuple):
    """A way to compute the same poses."""

    routing: DynamicRouting = DynamicRouting()
    votes_free: bool = False
    dtype: str = "float32"
    is_plain: bool = False

    def route(self, num_iterations: int) -> Callable[..., jax.Array]:
        """Returns a function from capsules and weight to poses."""
        if self.is_plain:
            return functools.partial(einsum_loop, rounds=num_iterations)
        value = dataclasses.replace(self.routing, num_iterations=num_iterations)
        if self.votes_free:
            return lambda capsules, weight: value.from_capsules(capsules, weight).pose
        return lambda capsules, weight: value(cast_votes(capsules, weight)).pose

    def multiplications(self, problem: Problem, *, backward: bool) -> float:
        """Counts products with ``W`` and sums over votes, recomputed ones too.

        Does not count what ``remat`` recomputes.
        """
        later, stop = problem.rounds - 1, self.routing.stop_gradient
        if self.votes_free:
            products, sums = 1 + later, 2 * later
            if backward and stop and later:
                products, sums = products + 3, sums + 2
            elif backward:
                products, sums = products + 3 * later + 2, sums + 5 * later
        else:
            products, sums = 1, 2 * later + 1
            if backward:
                products, sums = 3, sums + (1 if stop else 2 * sums)
        return problem.votes * (products * problem.c + sums)


PLAIN, VOTES, VOTES_FREE = "plain einsum loop", "routing(votes)", "DenseCaps"
FORMS = {
    PLAIN: Form(is_plain=True),
    VOTES: Form(),
    "fori_loop": Form(DynamicRouting(unroll=1)),
    "body rematerialised": Form(DynamicRouting(remat="body")),
    "all rematerialised": Form(DynamicRouting(remat="full")),
    VOTES_FREE: Form(votes_free=True),
    "routing(votes), stop-gradient": Form(DynamicRouting(stop_gradient=True)),
    "DenseCaps, stop-gradient": Form(
        DynamicRouting(stop_gradient=True), votes_free=True
    ),
    "routing(votes), bfloat16": Form(dtype="bfloat16"),
    "DenseCaps, bfloat16": Form(votes_free=True, dtype="bfloat16"),
}


class Program(NamedTuple):
    """One compiled function with its operands."""

    run: Callable[..., Any]
    operands: tuple[Any, ...]
    compile_seconds: float
    temporary_bytes: int

    def milliseconds(self) -> float:
        """Returns the wall time of one run."""
        start = time.perf_counter()
        jax.block_until_ready(self.run(*self.operands))
        return 1e3 * (time.perf_counter() - start)


def compile_function(function: Callable[..., Any], *operands: Any) -> Program:
    """Compiles a function for its operands."""
    start = time.perf_counter()
    run = jax.jit(function).lower(*operands).compile()
    seconds = time.perf_counter() - start
    memory = run.memory_analysis()
    assert memory is not None
    return Program(run, operands, seconds, memory.temp_size_in_bytes)


def compile_program(form: Form, problem: Problem, *, backward: bool) -> Program:
    """Compiles the poses, or poses and gradients of capsules and weight."""
    route = form.route(problem.rounds)

    def with_gradients(capsules, weight, gradient):
        pose, pullback = jax.vjp(route, capsules, weight)
        return pose, pullback(gradient)

    operands = problem.operands(form.dtype)[: 3 if backward else 2]
    return compile_function(with_gradients if backward else route, *operands)


def measure(programs: dict[Any, Program], repeats: int) -> dict[Any, list[float]]:
    """Returns the milliseconds of every program, run in turn."""
    times: dict[Any, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            program.milliseconds()
            times[name].append(program.milliseconds())
    return times


class Machine(NamedTuple):
    """The rates that the machine reaches on work that suits it."""

    multiplications_per_second: float
    bytes_per_second: float


def measure_machine(repeats: int) -> Machine:
    """Measures a large matrix product, and reading and writing a large array."""
    n, size = 1536, 2**25
    square = jnp.ones((n, n))
    product = jax.jit(jnp.matmul).lower(square, square).compile()
    stream = jax.jit(lambda x: x + 1, donate_argnums=0)
    array = stream(jnp.zeros(size))
    best = [float("inf")] * 2
    for _ in range(max(3, repeats)):
        start = time.perf_counter()
        jax.block_until_ready(product(square, square))
        middle = time.perf_counter()
        array = jax.block_until_ready(stream(array))
        end = time.perf_counter()
        best = [min(best[0], middle - start), min(best[1], end - middle)]
    return Machine(n**3 / best[0], 2 * 4 * size / best[1])


def environment() -> dict[str, Any]:
    """Returns the versions and the device behind the numbers."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "device": f"{device.platform}: {device.device_kind}",
        "cores": len(os.sched_getaffinity(0)),
    }


def compare_forms(problem: Problem, repeats: int) -> Iterable[dict[str, Any]]:
    """Yields a record for each form, forward and with the gradients."""
    machine = measure_machine(repeats)
    programs = {
        (name, backward): compile_program(form, problem, backward=backward)
        for name, form in FORMS.items()
        for backward in (False, True)
    }
    times = measure(programs, repeats)
    for (name, backward), program in programs.items():
        own, plain = times[name, backward], times[PLAIN, backward]
        work = FORMS[name].multiplications(problem, backward=backward)
        yield {
            "form": name,
            "dtype": FORMS[name].dtype,
            "backward": backward,
            "problem": problem._asdict(),
            "median_ms": statistics.median(own),
            "min_ms": min(own),
            "max_ms": max(own),
            "ratio": statistics.median(map(operator.truediv, plain, own)),
            "temporary_bytes": program.temporary_bytes,
            "compile_seconds": program.compile_seconds,
            "multiplications": work,
            "limit_ms": 1e3 * work / machine.multiplications_per_second,
            "machine": machine._asdict(),
            "environment": environment(),
        }


def print_table(header: str, rows: Iterable[str]) -> None:
    print(f"| {header} |\n{'|---' * (header.count('|') + 1)}|")
    for row in rows:
        print(f"| {row} |")
    print()


def print_forms(records: list[dict[str, Any]]) -> None:
    problem = Problem(**records[0]["problem"])
    rate, bandwidth = records[0]["machine"].values()
    operands = sum(x.nbytes for x in problem.operands("float32"))
    print("Problem:", ", ".join(f"{k} {v}" for k, v in problem._asdict().items()))
    print("Environment:", ", ".join(f"{k} {v}" for k, v in environment().items()))
    print(f"Machine: {rate / 1e9:.0f} G multiplications/s in a matrix product,")
    print(f"  {bandwidth / 1e9:.0f} GB/s of memory")
    print(
        f"Operands: {operands / 1e6:.0f} MB, {1e3 * operands / bandwidth:.1f} ms to go"
    )
    print(f"  through; the votes would be {4e-6 * problem.votes:.0f} MB in float32\n")
    for backward in (False, True):
        print_table(
            f"form, forward{' + backward' * backward} | ms, median (min - max) "
            "| times faster | temporary MB | compile s | G multiplications "
            "| at the machine's rate, ms | reached",
            (
                f"{r['form']} | {r['median_ms']:.1f} ({r['min_ms']:.1f} - "
                f"{r['max_ms']:.1f}) | {r['ratio']:.2f} | "
                f"{r['temporary_bytes'] / 1e6:.1f} | {r['compile_seconds']:.1f} | "
                f"{r['multiplications'] / 1e9:.2f} | {r['limit_ms']:.1f} | "
                f"{r['limit_ms'] / r['median_ms']:.0%}"
                for r in records
                if r["backward"] is backward
            ),
        )


# Inputs and batches at which neither of our forms may take more time or memory than the
# plain loop by more than a tenth.
LIMITED = {
    "1152x128": Problem(),
    "20000x1": Problem(batch=1, i=20_000),
    "30000x1": Problem(batch=1, i=30_000),
    "100000x16": Problem(batch=16, i=100_000),
}


def compare_with_plain(
    problems: Iterable[Problem], repeats: int
) -> Iterable[dict[str, Any]]:
    """Yields a record for each problem, direction and form, beside the plain loop."""
    for problem, backward in itertools.product(problems, (False, True)):
        programs = {
            name: compile_program(FORMS[name], problem, backward=backward)
            for name in (PLAIN, VOTES, VOTES_FREE)
        }
        times = measure(programs, repeats)
        for name, own in times.items():
            temporary, plain = (programs[x].temporary_bytes for x in (name, PLAIN))
            yield {
                "form": name,
                "backward": backward,
                "problem": problem._asdict(),
                "median_ms": statistics.median(own),
                "min_ms": min(own),
                "ratio": statistics.median(map(operator.truediv, own, times[PLAIN])),
                "temporary_bytes": temporary,
                "temporary_ratio": temporary / plain,
                "environment": environment(),
            }


def print_limited(records: list[dict[str, Any]]) -> None:
    print("Environment:", ", ".join(f"{k} {v}" for k, v in environment().items()), "\n")
    print_table(
        "inputs x batch | direction | form | ms, median (min) | times the plain loop's "
        "| temporary MB | times the plain loop's",
        (
            f"{r['problem']['i']} x {r['problem']['batch']} | "
            f"forward{' + backward' * r['backward']} | {r['form']} | "
            f"{r['median_ms']:.1f} ({r['min_ms']:.1f}) | {r['ratio']:.2f} | "
            f"{r['temporary_bytes'] / 1e6:.1f} | {r['temporary_ratio']:.2f}"
            for r in records
        ),
    )


def main() -> None:
    if {"--algorithms", "--networks"} & {*sys.argv}:
        import routing_algorithms  # Late: it imports this file.

        routing_algorithms.main()
        return
    parser = argparse.ArgumentParser(description="Time and memory of dynamic routing.")
    parser.add_argument("--quick", action="store_true", help="smaller and shorter")
    parser.add_argument(
        "--plain",
        nargs="*",
        choices=LIMITED,
        metavar="INPUTSxBATCH",
        help=f"beside a plain loop, at some or all of {', '.join(LIMITED)}",
    )
    parser.add_argument("--grow", action="store_true", help="cost against every size")
    parser.add_argument("--repeats", type=int, help="runs of each program")
    parser.add_argument("--json", metavar="FILE", help="append the records to FILE")
    parser.add_argument("--figure", metavar="FILE", help="draw the curves of --grow")
    options = parser.parse_args()
    if options.figure and not options.grow:
        parser.error("--figure draws what --grow measures")
    problem = Problem(batch=32) if options.quick else Problem()
    repeats = options.repeats or (3 if options.quick else 10)
    import routing_growth  # Late: it imports this file.

    if options.plain is not None:
        problems = [LIMITED[name] for name in options.plain or LIMITED]
        records = list(compare_with_plain(problems, repeats))
        print_limited(records)
    else:
        measured = routing_growth.grow if options.grow else compare_forms
        records = list(measured(problem, repeats))
        (routing_growth.print_growth if options.grow else print_forms)(records)
    if options.json:
        with open(options.json, "a") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    if options.figure:
        routing_growth.draw_growth(records, options.figure)


if __name__ == "__main__":
    main()
