"""Every function against float64, then whole runs: accuracy, resuming, the commands."""

import concurrent.futures
import functools
import json
import operator
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from accelerator_parts import reference
from accelerator_parts.points import Part
from accelerator_parts.training import ROOT, recipe, shrink
from PIL import Image
from routing import Problem

from capsjax import DynamicRouting, margin_loss, safe_norm, squash
from capsjax import config as configs
from capsjax.data import load
from capsjax.layers import Convolution, Decoder, DenseCaps, PrimaryCaps
from capsjax.losses import MarginLoss, reconstruction_loss
from capsjax.models import CapsNet
from capsjax.models.network import init_variables
from capsjax.training.objective import measure

# Products round to 24, 11 and 8 bits. The largest relative errors that are taken for
# rounding: some ten times what a CPU has, where there is no TF32.
LIMITS = {"float32 highest": 2e-5, "float32": 5e-3, "bfloat16": 5e-2}
WHOLE = "CapsNet, loss"
# What may make a GPU give the same bits twice, tried if it does not by itself.
FLAGS = (
    "--xla_gpu_exclude_nondeterministic_ops=true",
    "--xla_gpu_deterministic_ops=true",
    "--xla_gpu_autotune_level=0",
    "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0",
)


def run(part: Part) -> None:
    part.need_accelerator()
    with concurrent.futures.ThreadPoolExecutor(4 if part.quick else 12) as pool:
        checks = make_checks(*((2, 8) if part.quick else (32, 256)))
        points: dict[str, Callable[[], dict]] = compare(checks, pool, quick=part.quick)
        if not part.has_runs:
            part.run(points)
            return
        runs = Runs(part)
        points["smoke training"] = runs.accuracy
        points["killed and resumed"] = runs.resumed
        points["evaluate"] = runs.evaluated
        points["predict"] = runs.predicted
        part.run(points)
        pool.shutdown(cancel_futures=True)
        runs.close()


# ---- functions


class Check(NamedTuple):
    """A function of ours, and the same written plainly.

    Attributes:
        function: Given the type of its products' operands, a function of the operands.
        reference: A function of the same operands.
        operands: Trees of float32 arrays, with regard to which gradients are compared.
        fixed: Further operands.
    """

    function: Callable[[str], Callable]
    reference: Callable
    operands: tuple[Any, ...]
    fixed: tuple[Any, ...] = ()


def make_checks(batch: int, width: int) -> dict[str, Check]:
    """All checks, quick ones first; at a width of 256 of the paper's sizes."""
    rng = np.random.default_rng(0)

    def normal(*shape, scale=1.0):
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    num_inputs = 36 * width // 8
    # Lengths of a third, between those of the margins, so that no gradient vanishes.
    scale = 1.6 / num_inputs**0.5
    model = CapsNet(
        *((28, 28, 1), 10),
        conv_features=width,
        primary_types=width // 8,
        conv_init="he_normal",
        primary_init="he_normal",
        weight_init=f"normal({scale})",
    )
    variables = jax.jit(functools.partial(init_variables, model))(jax.random.key(0))
    params = jax.tree.map(np.asarray, variables["params"])
    image = rng.random((batch, 28, 28, 1), np.float32)
    hidden = np.maximum(normal(batch, 20, 20, width), 0)
    label = np.arange(batch) % 10
    mask = np.eye(10, dtype=np.float32)[label]
    problem = Problem(batch=batch, i=num_inputs)
    capsules, weight, _ = map(np.asarray, problem.operands("float32"))
    votes = np.einsum("ijdc,bic->bijd", weight, capsules, optimize=True)
    pose = np.asarray(squash(normal(batch, 10, 16)))

    def layer(kind, **options):
        def function(dtype):
            made = kind(compute_dtype=dtype, **options)
            return lambda params, *rest: made.apply({"params": params}, *rest)

        return function

    def narrow(function):
        """Of operands of that type: those functions multiply what they are given."""

        def of(dtype):
            return lambda *operands: function(*(x.astype(dtype) for x in operands))

        return of

    def whole(dtype):
        network = model.clone(compute_dtype=dtype)

        def loss(params, image, mask):
            variables = {"params": params}
            routed = network.apply(variables, image, method=network.encode)
            metrics = measure(
                *(network, variables, routed, image, label),
                loss=MarginLoss(),
                mask=mask,
            )
            return jnp.mean(metrics.loss)

        return loss

    def dense(params, capsules):
        return DenseCaps(10, 16).apply({"params": params}, capsules).pose

    types = width // 8
    return {
        "routing, votes-free": Check(
            narrow(lambda c, w: DynamicRouting().from_capsules(c, w).pose),
            reference.route_capsules,
            (capsules, weight),
        ),
        "routing, votes": Check(
            narrow(lambda votes: DynamicRouting()(votes).pose),
            reference.route,
            (votes,),
        ),
        "PrimaryCaps": Check(
            layer(PrimaryCaps, num_types=types),
            reference.primary_capsules,
            (params["primary_caps"], hidden),
        ),
        "DenseCaps": Check(
            lambda _: dense,
            lambda params, u: reference.route_capsules(u, params["weight"]),
            (params["class_caps"], np.asarray(squash(normal(batch, num_inputs, 8)))),
        ),
        "Decoder": Check(
            layer(Decoder, image_shape=(28, 28, 1)),
            lambda p, pose, mask: reference.draw(p, pose, mask, (28, 28, 1)),
            (params["decoder"], pose),
            (mask,),
        ),
        "convolution, 9x9": Check(
            layer(Convolution, features=width, kernel_size=9),
            lambda p, image: reference.convolve(image, p["kernel"]),
            (params["conv"], image),
        ),
        "convolution, 9x9, stride 2": Check(
            layer(Convolution, features=width, kernel_size=9, stride=2),
            lambda p, image: reference.convolve(image, p["kernel"], 2),
            (params["primary_caps"]["conv"], hidden),
        ),
        "squash": Check(
            narrow(squash), reference.squash, (normal(batch, num_inputs, 8),)
        ),
        "safe_norm": Check(
            narrow(safe_norm), reference.norm, (normal(batch, num_inputs, 8),)
        ),
        "margin loss": Check(
            narrow(lambda length: margin_loss(length, label)),
            lambda length: reference.margin_loss(length, mask),
            (rng.random((batch, 10), np.float32),),
        ),
        "reconstruction loss": Check(
            narrow(reconstruction_loss),
            reference.reconstruction_loss,
            (rng.random((batch, 28, 28, 1), np.float32), image),
        ),
        WHOLE: Check(whole, reference.loss, (params,), (image, mask)),
    }


def with_gradient(function: Callable) -> Callable:
    """Value and gradients, for a given gradient of the value."""

    def both(operands, fixed, gradient):
        value, pullback = jax.vjp(lambda *x: function(*x, *fixed), *operands)
        return value, pullback(gradient.astype(value.dtype))

    return both


def operands_of(check: Check) -> tuple[Any, Any, np.ndarray]:
    shape = jax.eval_shape(check.reference, *check.operands, *check.fixed).shape
    gradient = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return check.operands, check.fixed, gradient


def compare(
    checks: dict[str, Check], pool, *, quick: bool
) -> dict[str, Callable[[], dict]]:
    """Compiles everything side by side, and returns what waits for the errors.

    Args:
        checks: By name.
        pool: Where things are compiled and run.
        quick: Whether to leave out what is the same on a CPU, or part of the network,
            and to lower for CUDA too what is then run on the CPU.
    """
    points = {}
    for name, check in checks.items():
        operands = operands_of(check)
        futures = {}
        hows = tuple(LIMITS)
        if quick:
            hows = ("float32", "bfloat16") if name == WHOLE else ("float32",)
        for how in ("reference", *hows):
            try:
                program, own = _lowered(check, how, operands, export=quick)
                futures[how] = pool.submit(_run, program, own)
            except Exception as error:  # For this check's point to raise.
                futures[how] = concurrent.futures.Future()
                futures[how].set_exception(error)
        points[name] = functools.partial(_errors, futures)
    return points


def _lowered(check: Check, how: str, operands, *, export: bool) -> tuple[Any, Any]:
    if how == "reference":
        with jax.enable_x64():
            cpu = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
            operands = jax.tree.map(lambda x: np.asarray(x, np.float64), operands)
            function = with_gradient(check.reference)
            jitted = jax.jit(function, in_shardings=cpu, out_shardings=cpu)
            return jitted.lower(*operands), operands
    function = with_gradient(check.function(how.split()[0]))
    with jax.default_matmul_precision("highest" if "highest" in how else None):
        program = jax.jit(function)
        if export:
            both = jax.export.export(program, platforms=["cpu", "cuda"])
            program = jax.jit(both(*operands).call)
        return program.lower(*operands), operands


def _run(program, operands) -> Any:
    with jax.enable_x64(operands[2].dtype == np.float64):
        return jax.tree.map(np.asarray, program.compile()(*operands))


def _errors(futures: dict[str, Any]) -> dict[str, Any]:
    """Relative errors of the value, of the gradients, and of their worst array.

    A small array of a large gradient may be off by more: its own limit is ten times
    the limit of the whole.
    """
    value, gradients = futures.pop("reference").result()
    figures: dict[str, Any] = {"ok": True}
    for how, future in futures.items():
        own_value, own_gradients = future.result()
        pairs = list(zip(own_gradients, gradients, strict=True))
        errors = {
            "value": _relative_error(own_value, value),
            "gradient": max(_relative_error(*pair) for pair in pairs),
            "worst array": max(
                _relative_error(*pair)
                for own, expected in pairs
                for pair in zip(*map(jax.tree.leaves, (own, expected)), strict=True)
            ),
        }
        figures[how] = errors
        # Not the other way round: what is no number is no rounding.
        figures["ok"] &= all(
            error <= LIMITS[how] * (10 if name == "worst array" else 1)
            for name, error in errors.items()
        )
    return figures


def _relative_error(actual: Any, expected: Any) -> float:
    """Of a whole tree; infinite where a number is none, which ``max`` would lose."""
    wide = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(actual)]
    known = np.concatenate([np.ravel(x) for x in jax.tree.leaves(expected)])
    difference = np.linalg.norm(np.concatenate(wide) - known)
    error = float(difference / np.linalg.norm(known))
    return error if np.isfinite(error) else float("inf")


# ---- runs


TRAIN = """
import json, sys
from capsjax import config, train
from capsjax.storage.workdir import Workdir
train.train(config.from_dict(json.loads(sys.argv[1])), Workdir(sys.argv[2]))
"""


class Runs:
    """Runs in processes of their own, beside each other and beside the functions.

    Two are whole, each with compiled programs of its own; then one is killed and
    resumed with the programs of the first.
    """

    def __init__(self, part: Part):
        self.part = part
        self.config = recipe("smoke")
        self.config.num_epochs = 3 if part.quick else 4
        if part.quick:
            shrink(self.config)
        self.processes: list[subprocess.Popen] = []
        self.pool = concurrent.futures.ThreadPoolExecutor(2 * (1 + len(FLAGS)))
        self.first, self.second, self.killed = self._start("")

    def _start(self, flags: str):
        number = 1 + len(list(self.part.scratch.glob("runs*")))
        folder = self.part.scratch / f"runs{number}"
        folder.mkdir()
        first = self.pool.submit(self._finish, folder / "first", "one", flags)
        second = first
        if not self.part.quick:
            second = self.pool.submit(self._finish, folder / "second", "other", flags)

        def kill_and_resume():
            path = first.result().parent / "killed"
            self._kill(path, "one", flags)
            return self._finish(path, "one", flags)

        return first, second, self.pool.submit(kill_and_resume)

    def _process(self, path, cache, flags):
        outer = os.environ.get("XLA_FLAGS", "")
        log = open(f"{path}.log", "a")  # noqa: SIM115, for the process
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", TRAIN),
                *(json.dumps(configs.to_dict(self.config)), path),
            ],
            env=os.environ
            | {
                "XLA_FLAGS": f"{outer} {flags}".strip(),
                "JAX_COMPILATION_CACHE_DIR": str(path.parent / f"cache-{cache}"),
            },
            stdout=log,
            stderr=log,
        )
        self.processes.append(process)
        return process

    def close(self) -> None:
        """Ends what nobody waits for any more."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        for process in self.processes:
            process.kill()

    def _finish(self, path, cache, flags) -> pathlib.Path:
        if code := self._process(path, cache, flags).wait():
            text = pathlib.Path(f"{path}.log").read_text()
            raise RuntimeError(f"training ended with {code}: {text[-1000:]}")
        return path

    def _kill(self, path, cache, flags) -> None:
        process = self._process(path, cache, flags)
        while process.poll() is None:
            if any(one.name.isdigit() for one in path.glob("checkpoints/*")):
                break
            time.sleep(0.005)
        process.kill()
        if process.wait() != -9:
            raise RuntimeError(f"{path} ended before it was killed")

    def accuracy(self) -> dict[str, Any]:
        result = json.loads((self.first.result() / "result.json").read_text())
        accuracy, enough = result["test"]["accuracy"], 0.0 if self.part.quick else 0.95
        return {"accuracy": accuracy, "enough": enough, "ok": accuracy > enough}

    def resumed(self) -> dict[str, Any]:
        without = _same_bits(self.first, self.second, self.killed)
        figures = {"no flags": without, "ok": without["killed and resumed"]}
        if not all(without.values()):
            tried = {flags: self._start(flags) for flags in FLAGS}
            for flags, runs in tried.items():
                try:
                    found: Any = _same_bits(*runs)
                except (OSError, RuntimeError, ValueError) as error:
                    found = str(error)[-300:]
                figures[flags] = found
                # At once: the part may be killed while it waits for the others.
                self.part.write(tried=flags, same_bits=found)
        return figures

    def _command(self, name, *arguments) -> str:
        command = [sys.executable, "-m", f"capsjax.{name}", *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"capsjax.{name}: {done.stdout}{done.stderr}"[-1000:])
        return done.stdout

    def evaluated(self) -> dict[str, Any]:
        path = self.first.result()
        self._command("evaluate", "--workdir", path)
        found = json.loads((path / "figures" / "evaluation.json").read_text())
        test = json.loads((path / "result.json").read_text())["test"]
        difference = abs(found["loss"] - test["loss"]) / test["loss"]
        return {"loss": found["loss"], "by_training": test["loss"]} | {
            "relative_difference": difference,
            "ok": difference < 2e-3,
        }

    def predicted(self) -> dict[str, Any]:
        """Digits of the test set as image files, which the command centres again."""
        path, test_set = self.first.result(), load("mnist", "test").fixed()
        files = []
        for n in range(20):
            files.append(path.parent / f"{n}.png")
            Image.fromarray(np.pad(test_set.image[n, ..., 0], 6)).save(files[-1])
        answers = json.loads(
            self._command("predict", "--workdir", path, "--json", *files)
        )
        predicted = [int(answer["label"]) for answer in answers]
        right = sum(map(operator.eq, predicted, test_set.label[:20].tolist()))
        enough = 0 if self.part.quick else 17
        return {"right": right, "of": len(files), "ok": right >= enough}


def _same_bits(first, second, killed) -> dict[str, bool]:
    sys.path += [str(ROOT / "tests" / name) for name in ("helpers", "reliability")]
    from kill_and_resume import different, outcome

    whole = outcome(first.result())
    return {
        "compiled anew": not different(outcome(second.result()), whole),
        "killed and resumed": not different(outcome(killed.result()), whole),
    }
