"""Routing alone: votes-free, of votes, and the loop that one would write."""

import concurrent.futures
import functools
import os

import jax
import routing
from accelerator_parts.points import Part, first_line, seconds_of
from routing import Form, Problem

from capsjax import DynamicRouting

# In order of worth, each with the gradient and without.
PROBLEMS = (
    Problem(batch=128),
    Problem(batch=1024),
    Problem(batch=16, i=20_000),
    Problem(batch=1, i=100_000),
    Problem(batch=512),
    Problem(batch=1),
    Problem(batch=1, i=20_000),
    Problem(batch=16),
)
# Arrays as large as the votes that are held at once with the gradient, or more.
COPIES = 8


FORMS = {
    "votes-free": Form(DynamicRouting(form="votes_free"), votes_free=True),
    "votes": Form(),
    "einsum loop": Form(is_plain=True),
}


def run(part: Part) -> None:
    part.need_accelerator()
    problems = (Problem(batch=8, i=72),) if part.quick else PROBLEMS
    points = {
        f"batch {p.batch}, {p.i} inputs, {('forward', 'with gradient')[backward]}": (
            functools.partial(measure, p, backward, 0.05 if part.quick else 0.3)
        )
        for p in problems
        for backward in (True, False)
    }
    if part.quick:
        points["lowered for CUDA"] = lowered
    part.run(points)


def memory_bytes() -> int:
    stats = jax.devices()[0].memory_stats() or {}
    in_use = stats.get("bytes_in_use", 0)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return stats.get("bytes_limit", pages) - in_use


def measure(problem: Problem, backward: bool, seconds: float) -> dict:  # noqa: FBT001
    """Each form's time and temporary memory; an error of one leaves the others."""
    figures: dict = {"problem": problem._asdict(), "backward": backward, "forms": {}}
    wanted = 4 * problem.votes * COPIES
    is_small = wanted < memory_bytes()
    forms = {n: f for n, f in FORMS.items() if f.votes_free or is_small}
    for name in FORMS.keys() - forms.keys():
        figures["forms"][name] = {"left": f"about {wanted / 1e9:.0f} GB of votes"}
    compiling = functools.partial(
        routing.compile_program, problem=problem, backward=backward
    )
    with concurrent.futures.ThreadPoolExecutor(len(forms)) as pool:
        futures = {name: pool.submit(compiling, form) for name, form in forms.items()}
    for name, future in futures.items():
        try:
            program = future.result()
            call = functools.partial(program.run, *program.operands)
            figures["forms"][name] = {
                "seconds": seconds_of(call, seconds=seconds),
                "temporary_bytes": program.temporary_bytes,
                "compile_seconds": program.compile_seconds,
            }
        except Exception as error:
            figures["forms"][name] = {"error": first_line(error)}
    return figures


def lowered() -> dict:
    """Every form with its gradient, as XLA would get it on a GPU."""
    problem = PROBLEMS[0]
    capsules, weight, _ = problem.operands("float32")
    for form in FORMS.values():
        route = form.route(problem.rounds)
        gradient = jax.grad(lambda *x, route=route: route(*x).sum(), (0, 1))
        jax.export.export(jax.jit(gradient), platforms=["cuda"])(capsules, weight)
    return {"lowered": list(FORMS)}
