"""Compares our routing algorithms with code of their authors and of other people.

    python benchmarks/against_authors.py --list             what to clone
    python benchmarks/against_authors.py --clones FOLDER    tables in Markdown
    python benchmarks/against_authors.py --clones FOLDER --json FILE

It needs PyTorch beside what ``import capsjax`` needs. Their code is not part of this
repository: FOLDER holds clones of it, each named as on GitHub. Both sides get the same
random numbers in float64, and compute the outputs of a layer and the gradients of a
random weighted sum of its poses and activations, for all inputs and weights. A
difference is the largest one of all entries and sizes, divided by the largest entry of
theirs. The exit code is 1 if one is above the pair's tolerance. A clone that is missing
is a line of its own, and no failure.

Letters: ``b`` examples, ``i`` input capsules with ``c`` components, ``j`` output
capsules with ``d``.
"""

import abc
import argparse
import json
import math
import pathlib
import subprocess
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from capsjax.routings import ROUTINGS, Routed

PARTS = ("pose", "activation", "coupling", "gradient")


class Clone(NamedTuple):
    """A public repository."""

    address: str
    licence: str

    def within(self, folder: pathlib.Path) -> pathlib.Path:
        return folder / self.address.split("/")[1]


AKHDANFADH = Clone("akhdanfadh/efficient-capsnet-pytorch", "MIT")
APPLE = Clone("apple/ml-capsules-inverted-attention-routing", "Apple's own")
DANIELHAVIR = Clone("danielhavir/capsule-network", "MIT")
FABIO_DEEP = Clone("fabio-deep/Variational-Capsule-Routing", "Apache 2.0")
GRAM_AI = Clone("gram-ai/capsule-networks", "no licence")
SR_CAPSNET = Clone("coder3000/SR-CapsNet", "no licence")
YL_1993 = Clone("yl-1993/Matrix-Capsules-EM-PyTorch", "MIT")


class Case(NamedTuple):
    """Sizes, rounds, our form, and the deviation of what is drawn."""

    b: int
    i: int
    j: int
    c: int
    d: int
    rounds: int = 1
    form: str = "votes"
    deviation: float = 0.5

    def __str__(self):
        sizes = "x".join(map(str, self[:5]))
        return f"{sizes}, {self.rounds}{', votes-free' * (self.form != 'votes')}"


class Pair(abc.ABC):
    """One of our algorithms, and a class of other people that should compute the same.

    Attributes:
        routing: Our algorithm's name in ``ROUTINGS``.
        clone: Where theirs is.
        file: The file in the clone.
        name: The class in the file.
        changes: Text to replace in their file.
        terms: What else makes the two equal.
        coupling_axes: The axes of the last softmax in theirs; None if that has no
            couplings.
        tolerance: The largest difference that passes.
        cases: What is compared.
    """

    routing: ClassVar[str]
    clone: ClassVar[Clone]
    file: ClassVar[str]
    name: ClassVar[str]
    changes: ClassVar[Mapping[str, str]] = {}
    terms: ClassVar[str] = ""
    coupling_axes: ClassVar[str | None] = "bij"
    tolerance: ClassVar[float] = 1e-11
    cases: ClassVar[Sequence[Case]]

    @abc.abstractmethod
    def shapes(self, case: Case) -> dict[str, tuple[int, ...]]:
        """Returns shapes of inputs and weights, named as their parameters are."""

    @abc.abstractmethod
    def ours(self, case: Case, arrays: Mapping[str, jax.Array]) -> Routed:
        """Computes ours."""

    @abc.abstractmethod
    def theirs(
        self, module: Any, case: Case, arrays: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Computes the pose, and the activation and coupling if they return them."""


ROUNDS = (Case(2, 7, 3, 5, 4, rounds=2), Case(3, 12, 5, 4, 16, rounds=3))
VOTES_FREE = (Case(3, 12, 5, 4, 16, rounds=5, form="votes_free"),)
NO_ROUNDS = (Case(2, 7, 3, 5, 4), Case(3, 12, 5, 4, 16))
MATRICES = (Case(2, 9, 3, 4, 4, rounds=2), Case(3, 40, 5, 16, 16, rounds=3))


# ---- dynamic and uniform routing


class DynamicOfSRCapsNet(Pair):
    routing = "dynamic"
    clone, file, name = SR_CAPSNET, "modules.py", "DynamicRouting2d"
    cases = ROUNDS + VOTES_FREE

    def shapes(self, case):
        b, i, j, c, d, *_ = case
        return {"capsules": (b, i, c), "W": (i, j * d, c)}

    def algorithm(self, case):
        return ROUTINGS["dynamic"](num_iterations=case.rounds, form=case.form)

    def ours(self, case, arrays):
        _, i, j, c, d, *_ = case
        weight = arrays["W"].reshape(i, j, d, c)
        return self.algorithm(case).from_capsules(arrays["capsules"], weight)

    def theirs(self, module, case, arrays):
        b, i, j, c, d, rounds, *_ = case
        layer = module.DynamicRouting2d(i, j, c, d, padding=0, iters=rounds)
        pose = call(layer, arrays, arrays["capsules"].reshape(b, i * c, 1, 1))
        return {"pose": pose.reshape(b, j, d)}


class UniformOfSRCapsNet(DynamicOfSRCapsNet):
    routing = "uniform"
    terms = "theirs with one round"
    cases = NO_ROUNDS

    def algorithm(self, case):
        return ROUTINGS["uniform"]()


class DynamicOfDanielhavir(Pair):
    routing = "dynamic"
    clone, file, name = DANIELHAVIR, "capsules.py", "RoutingCapsules"
    terms = "ours with `stop_gradient`; their squash adds 1e-8 to the length"
    coupling_axes = "bji"
    tolerance = 1e-7
    cases = ROUNDS + VOTES_FREE

    def shapes(self, case):
        b, i, j, c, d, *_ = case
        return {"capsules": (b, i, c), "W": (1, j, i, d, c)}

    def ours(self, case, arrays):
        weight = jnp.einsum("jidc->ijdc", arrays["W"][0])
        return ROUTINGS["dynamic"](
            num_iterations=case.rounds, form=case.form, stop_gradient=True
        ).from_capsules(arrays["capsules"], weight)

    def theirs(self, module, case, arrays):
        _, i, j, c, d, rounds, *_ = case
        layer = module.RoutingCapsules(c, i, j, d, rounds, "cpu")
        return {"pose": call(layer, arrays, arrays["capsules"])}


def over_inputs(logit: jax.Array) -> jax.Array:
    """Lets the inputs compete for each output: a frequent mistake."""
    return jax.nn.softmax(logit, axis=-2)


class DynamicOfGramAI(Pair):
    routing = "dynamic"
    clone, file, name = GRAM_AI, "capsule_network.py", "CapsuleLayer"
    changes: ClassVar = {
        "Variable(torch.zeros(*priors.size())).cuda()": "torch.zeros(*priors.size())"
    }
    terms = "ours with a `compete` over the inputs, which is their mistake"
    coupling_axes = None
    cases = ROUNDS

    def shapes(self, case):
        b, i, j, c, d, *_ = case
        return {"capsules": (b, i, c), "route_weights": (j, i, c, d)}

    def ours(self, case, arrays):
        weight = jnp.einsum("jicd->ijdc", arrays["route_weights"])
        return ROUTINGS["dynamic"](num_iterations=case.rounds).from_capsules(
            arrays["capsules"], weight, compete=over_inputs
        )

    def theirs(self, module, case, arrays):
        _, i, j, c, d, rounds, *_ = case
        layer = module.CapsuleLayer(j, i, c, d, num_iterations=rounds)
        pose = call(layer, arrays, arrays["capsules"])
        return {"pose": pose[:, :, 0, 0].swapaxes(0, 1)}


# ---- attention


class SelfAttentionOfAkhdanfadh(Pair):
    routing = "self_attention"
    clone, file, name = AKHDANFADH, "model/layers.py", "RoutingCaps"
    changes: ClassVar = {"torch.tensor(self.D1).float()": "torch.tensor(self.D1)"}
    coupling_axes = "bji"
    cases = (*NO_ROUNDS, Case(3, 12, 5, 4, 7, form="votes_free"))

    def shapes(self, case):
        b, i, j, c, d, *_ = case
        return {"capsules": (b, i, c), "W": (j, i, c, d), "b": (j, i, 1)}

    def ours(self, case, arrays):
        return ROUTINGS["self_attention"](form=case.form).from_capsules(
            arrays["capsules"],
            jnp.einsum("jicd->ijdc", arrays["W"]),
            parameters={"bias": arrays["b"][..., 0].T},
        )

    def theirs(self, module, case, arrays):
        _, i, j, c, d, *_ = case
        layer = module.RoutingCaps((i, c), (j, d))
        return {"pose": call(layer, arrays, arrays["capsules"])}


class InvertedAttentionOfApple(Pair):
    routing = "inverted_attention"
    clone, file, name = APPLE, "src/layers.py", "CapsuleFC"
    terms = "vector poses; the score is a `Linear` of their network"
    matrix_pose: ClassVar[bool] = False
    cases = (Case(2, 7, 3, 5, 4), *ROUNDS, *VOTES_FREE)

    def shapes(self, case):
        b, i, j, c, d, *_ = case
        norm = {"nonlinear_act.weight": (d,), "nonlinear_act.bias": (d,)}
        return {"capsules": (b, i, c), "w": (i, c, j, d), **norm}

    def weight(self, w):
        return jnp.einsum("icjd->ijdc", w)

    def ours(self, case, arrays):
        return ROUTINGS["inverted_attention"](
            num_iterations=case.rounds, form=case.form
        ).from_capsules(
            arrays["capsules"],
            self.weight(arrays["w"]),
            parameters={
                "scale": arrays["nonlinear_act.weight"],
                "offset": arrays["nonlinear_act.bias"],
                "score": jnp.ones(case.d),
            },
        )

    def theirs(self, module, case, arrays):
        _, i, j, c, d, *_ = case
        layer = module.CapsuleFC(i, c, j, d, matrix_pose=self.matrix_pose, dp=0.0)
        pose = None
        for number in range(case.rounds):
            pose = call(layer, arrays, arrays["capsules"], number, pose)
        return {"pose": pose}


def of_matrices(w: jax.Array) -> jax.Array:
    """Turns ``W [i, j, x, y]``, with votes ``M W``, into our weight for flat ``M``."""
    i, j, side, _ = w.shape
    weight = jnp.einsum("rs,ijxy->ijrysx", jnp.eye(side), w)
    return weight.reshape(i, j, side**2, side**2)


class InvertedAttentionOfAppleWithMatrices(InvertedAttentionOfApple):
    # PyTorch refuses the view of what einsum returns here.
    changes: ClassVar = {"next_capsule_value.view(": "next_capsule_value.reshape("}
    terms = "matrix poses"
    matrix_pose = True
    cases = (*MATRICES, Case(3, 12, 5, 16, 16, rounds=5, form="votes_free"))

    def shapes(self, case):
        side = math.isqrt(case.c)
        return super().shapes(case) | {"w": (case.i, side, side, case.j)}

    def weight(self, w):
        return of_matrices(jnp.einsum("ixyj->ijxy", w))


# ---- self-routing


class SelfRoutingOfSRCapsNet(Pair):
    routing = "self_routing"
    clone, file, name = SR_CAPSNET, "modules.py", "SelfRouting2d"
    cases = NO_ROUNDS

    def shapes(self, case):
        b, i, j, c, d, *_ = case
        route = {"W2": (i, j, c), "b2": (1, 1, i, j)}
        return {
            "capsules": (b, i, c),
            "activation": (b, i),
            "W1": (i, j * d, c),
        } | route

    def ours(self, case, arrays):
        _, i, j, c, d, *_ = case
        return ROUTINGS["self_routing"]().from_capsules(
            arrays["capsules"],
            arrays["W1"].reshape(i, j, d, c),
            arrays["activation"],
            parameters={"route_weight": arrays["W2"], "route_bias": arrays["b2"][0, 0]},
        )

    def theirs(self, module, case, arrays):
        _, i, j, c, d, *_ = case
        layer = module.SelfRouting2d(i, j, c, d, 1, padding=0, pose_out=True)
        return call_on_pixel(layer, case, arrays)


# ---- EM routing


def whole_at_first(logit: jax.Array) -> jax.Array:
    """Gives all of each input to each output in the first round, and shares later."""
    is_first = jnp.all(logit == 0, -1, keepdims=True)
    return jnp.where(is_first, 1, jax.nn.softmax(logit, axis=-1))


class EMOfSRCapsNet(Pair):
    routing = "em"
    clone, file, name = SR_CAPSNET, "modules.py", "EmRouting2d"
    terms = (
        'ours with `mass="sum"`, `min_variance=1e-12` and a `compete` that starts at '
        "1, as theirs does, instead of 1 / J"
    )
    cases = (Case(2, 9, 3, 4, 4), *MATRICES)

    def shapes(self, case):
        b, i, j, c, *_ = case
        side = math.isqrt(c)
        return {
            "capsules": (b, i, c),
            "activation": (b, i),
            "W": (i, j, side, side),
            "beta_u": (1, 1, j, 1),
            "beta_a": (1, 1, j),
        }

    def ours(self, case, arrays):
        return ROUTINGS["em"](
            num_iterations=case.rounds, mass="sum", min_variance=1e-12
        ).from_capsules(
            arrays["capsules"],
            of_matrices(arrays["W"]),
            arrays["activation"],
            parameters=betas(arrays),
            compete=whole_at_first,
        )

    def theirs(self, module, case, arrays):
        _, i, j, c, _, rounds, *_ = case
        layer = module.EmRouting2d(i, j, c, 1, padding=0, iters=rounds)
        return call_on_pixel(layer, case, arrays)


class PaperSchedule:
    """The paper's inverse temperature, as a factor that counts the rounds."""

    def __init__(self):
        self.round = 0

    def __mul__(self, logit: Any) -> Any:
        self.round += 1
        return 0.01 * (1 - 0.95**self.round) * logit


class EMOfYl1993(Pair):
    routing = "em"
    clone, file, name = YL_1993, "model/capsules.py", "ConvCaps"
    changes: ClassVar = {"torch.cuda.FloatTensor": "torch.DoubleTensor"}
    terms = (
        'ours with `mass="sum"`, `min_variance=1e-8` and activations of 1, because '
        "theirs cancel; theirs with the paper's schedule instead of 0.001; theirs adds "
        "1e-8 to each sum"
    )
    tolerance = 1e-6
    cases = EMOfSRCapsNet.cases

    def shapes(self, case):
        b, i, j, c, *_ = case
        side = math.isqrt(c)
        return {
            "capsules": (b, i, c),
            "activation": (b, i),
            "weights": (1, i, j, side, side),
            "beta_u": (j,),
            "beta_a": (j,),
        }

    def ours(self, case, arrays):
        return ROUTINGS["em"](
            num_iterations=case.rounds, mass="sum", min_variance=1e-8
        ).from_capsules(
            arrays["capsules"],
            of_matrices(arrays["weights"][0]),
            jnp.ones_like(arrays["activation"]),
            parameters=betas(arrays),
        )

    def theirs(self, module, case, arrays):
        b, i, j, c, d, rounds, *_ = case
        layer = module.ConvCaps(i, j, 1, math.isqrt(c), stride=1, iters=rounds)
        layer._lambda = PaperSchedule()
        # Detached, since the gradient is rounding: the activations cancel.
        parts = arrays["capsules"].reshape(b, i * c), arrays["activation"].detach()
        image = module.torch.cat(parts, 1)[:, None, None]
        pose, activation = call(layer, arrays, image)[:, 0, 0].split([j * d, j], 1)
        return {"pose": pose.reshape(b, j, d), "activation": activation}


# ---- variational Bayes


class VariationalBayesOfFabioDeep(Pair):
    routing = "variational_bayes"
    clone, file, name = FABIO_DEEP, "src/vb_routing.py", "VariationalBayesRouting2d"
    changes: ClassVar = {
        ".cuda()": "",
        "torch.cholesky": "torch.linalg.cholesky",
        "FloatTensor": "DoubleTensor",
    }
    terms = (
        "votes of deviation 0.05 to 0.2; theirs without batch normalisation; the "
        "sigmoid of our activation; PyTorch's derivative of digamma is 1.5e-9 off at "
        "0.5"
    )
    coupling_axes = None
    tolerance = 1e-8
    cases = (
        Case(2, 7, 3, 4, 4, rounds=2, deviation=0.2),
        Case(3, 12, 5, 16, 16, rounds=3, deviation=0.05),
        Case(3, 12, 5, 16, 16, rounds=3, deviation=0.1),
    )

    def shapes(self, case):
        b, i, j, _, d, *_ = case
        beta = (1, 1, j, *[1] * 6)
        votes = {"votes": (b, i, j, d), "activation": (b, i)}
        return votes | {"beta_u": beta, "beta_a": beta}

    def ours(self, case, arrays):
        algorithm = ROUTINGS["variational_bayes"](num_iterations=case.rounds)
        votes, activation = arrays["votes"], arrays["activation"]
        routed = algorithm(votes, activation, parameters=betas(arrays))
        return routed._replace(activation=jax.nn.sigmoid(routed.activation))

    def theirs(self, module, case, arrays):
        b, i, j, _, d, rounds, *_ = case
        torch = module.torch

        class Recording(module.VariationalBayesRouting2d):
            def update_qlatent(self, *arguments):
                self.coupling = super().update_qlatent(*arguments)
                return self.coupling

        layer = Recording(
            *(i, j, math.isqrt(d), 1, 1),
            alpha0=1.0,
            m0=torch.zeros(d),
            kappa0=1.0,
            Psi0=torch.eye(d),
            nu0=d + 1,
            iter=rounds,
            class_caps=True,
        )
        layer.BN_v = layer.BN_a = torch.nn.Identity()
        activation, pose = call(
            *(layer, arrays),
            arrays["activation"].reshape(b, i, *[1] * 7),
            arrays["votes"].reshape(b, i, j, d, *[1] * 5),
        )
        return {
            "pose": pose.reshape(b, j, d),
            "activation": activation,
            "coupling": layer.coupling.reshape(b, i, j),
        }


def betas(arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns our parameters of EM routing and of variational Bayes."""
    return {name: arrays[name].ravel() for name in ("beta_u", "beta_a")}


VARIATIONAL_BAYES = VariationalBayesOfFabioDeep()
PAIRS: Sequence[Pair] = (
    DynamicOfSRCapsNet(),
    DynamicOfDanielhavir(),
    DynamicOfGramAI(),
    UniformOfSRCapsNet(),
    SelfAttentionOfAkhdanfadh(),
    InvertedAttentionOfApple(),
    InvertedAttentionOfAppleWithMatrices(),
    EMOfSRCapsNet(),
    EMOfYl1993(),
    VARIATIONAL_BAYES,
    SelfRoutingOfSRCapsNet(),
)


# ---- their side


def load(pair: Pair, folder: pathlib.Path) -> types.ModuleType:
    """Runs their file as a module, with the pair's changes.

    Raises:
        ValueError: If the file lacks text that is to be replaced.
    """
    path = pair.clone.within(folder) / pair.file
    text = path.read_text()
    for old, new in pair.changes.items():
        if old not in text:
            raise ValueError(f"{path} must have the text {old!r}, to be replaced.")
        text = text.replace(old, new)
    module = types.ModuleType(path.stem)
    sys.path.insert(0, str(path.parent))
    try:
        exec(compile(text, path, "exec"), module.__dict__)
    finally:
        sys.path.pop(0)
        sys.modules.pop("utils", None)  # Other clones may have a file of that name.
    return module


def call(layer: Any, arrays: Mapping[str, Any], *inputs: Any) -> Any:
    """Calls their layer with arrays in place of all its parameters."""
    import torch

    own = {name: arrays[name] for name, _ in layer.named_parameters()}
    return torch.func.functional_call(layer.double(), own, inputs)


def call_on_pixel(layer: Any, case: Case, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Calls a convolutional layer of activations and poses on one pixel."""
    b, i, j, c, d, *_ = case
    presence = arrays["activation"].reshape(b, i, 1, 1)
    image = arrays["capsules"].reshape(b, i * c, 1, 1)
    activation, pose = call(layer, arrays, presence, image)
    return {"pose": pose.reshape(b, j, d), "activation": activation.reshape(b, j)}


def keep_softmax() -> Any:
    """Returns a context in which ``last`` is the result of the last softmax."""
    import torch

    class KeepSoftmax(torch.overrides.TorchFunctionMode):
        last = None

        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func.__name__ == "softmax":
                self.last = result
            return result

    return KeepSoftmax()


# ---- both sides


class Side(NamedTuple):
    """What one side computes: outputs, and gradients by the names of the arrays."""

    outputs: dict[str, Any]
    gradients: dict[str, Any]


def run_theirs(
    pair: Pair,
    module: Any,
    case: Case,
    arrays: Mapping[str, np.ndarray],
    random: np.random.Generator,
) -> tuple[Side, dict[str, np.ndarray]]:
    """Runs theirs, and draws the weights of the sum whose gradient it takes."""
    import torch

    tensors = {
        n: torch.tensor(array, requires_grad=True) for n, array in arrays.items()
    }
    with keep_softmax() as softmax:
        outputs = pair.theirs(module, case, tensors)
    weights = {
        name: random.normal(size=outputs[name].shape)
        for name in ("pose", "activation")
        if name in outputs
    }
    total = sum((outputs[n] * torch.tensor(w)).sum() for n, w in weights.items())
    gradients = torch.autograd.grad(
        total, list(tensors.values()), allow_unused=True, materialize_grads=True
    )
    if pair.coupling_axes and softmax.last is not None:
        coupling = softmax.last.squeeze()
        axes, order = (a[-coupling.ndim :] for a in (pair.coupling_axes, "bij"))
        outputs["coupling"] = torch.einsum(f"{axes}->{order}", coupling)
    outputs = {name: output.detach().numpy() for name, output in outputs.items()}
    return Side(outputs, dict(zip(tensors, gradients, strict=True))), weights


def run_ours(
    pair: Pair,
    case: Case,
    arrays: Mapping[str, np.ndarray],
    weights: Mapping[str, np.ndarray],
) -> Side:
    def weighted_sum(arrays):
        outputs = pair.ours(case, arrays)._asdict()
        return sum(jnp.vdot(outputs[n], w) for n, w in weights.items()), outputs

    run = jax.jit(jax.grad(weighted_sum, has_aux=True))
    gradients, outputs = run({n: jnp.asarray(array) for n, array in arrays.items()})
    return Side(outputs, gradients)


def run(pair: Pair, module: Any, case: Case, seed: int) -> tuple[Side, Side]:
    """Runs ours and theirs on the same numbers."""
    random = np.random.default_rng(seed)
    arrays = {
        name: random.uniform(0.1, 1, shape)
        if name == "activation"
        else random.normal(scale=case.deviation, size=shape)
        for name, shape in pair.shapes(case).items()
    }
    theirs, weights = run_theirs(pair, module, case, arrays, random)
    return run_ours(pair, case, arrays, weights), theirs


def difference(ours: Any, theirs: Any) -> float:
    """Returns the largest difference, relative to the largest entry of theirs."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs), initial=1e-300)


def compare(pair: Pair, module: Any) -> dict[str, float]:
    """Returns the largest difference of each part over all cases, or NaN."""
    found = {part: [] for part in PARTS}
    for seed, case in enumerate(pair.cases):
        ours, theirs = run(pair, module, case, seed)
        for part, array in theirs.outputs.items():
            if ours.outputs[part] is not None:  # Without votes are no couplings.
                found[part].append(difference(ours.outputs[part], array))
        for name, array in theirs.gradients.items():
            found["gradient"].append(difference(ours.gradients[name], array))
    return {part: float(np.max(values)) for part, values in found.items() if values}


def normalisation(module: Any, deviation: float) -> dict[str, Any]:
    """Measures whether couplings sum to one for votes of a deviation, on each side."""
    case = Case(3, 7, 5, 16, 16, rounds=3, deviation=deviation)
    record: dict[str, Any] = {"deviation": deviation}
    sides = run(VARIATIONAL_BAYES, module, case, seed=0)
    for name, side in zip(("ours", "theirs"), sides, strict=True):
        sums = np.asarray(side.outputs["coupling"]).sum(-1)
        arrays = [*side.outputs.values(), *side.gradients.values()]
        record[name] = {
            "sum": float(np.min(sums)),
            "is_finite": all(bool(np.isfinite(np.asarray(a)).all()) for a in arrays),
        }
    return record


# ---- report


def list_pairs() -> None:
    print_row("ours", "clone", "file: class", "licence")
    print_row(*["---"] * 4)
    for pair in PAIRS:
        where = f"`{pair.file}`: `{pair.name}`"
        print_row(pair.routing, pair.clone.address, where, pair.clone.licence)


def compare_all(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Prints one row for each pair as soon as it is compared; returns the rows."""
    sizes = "b x i x j x c x d, rounds"
    print_row("ours", "theirs", "changes and terms", sizes, *PARTS)
    print_row(*["---"] * 4, *["--:"] * len(PARTS))
    records = []
    for pair in PAIRS:
        address, licence = pair.clone
        clone = pair.clone.within(folder)
        where = f"`{pair.file}`: `{pair.name}` of {address}"
        record: dict[str, Any] = {"ours": pair.routing, "theirs": where}
        records.append(record)
        if not clone.exists():
            record["not_run"] = f"not run: clone https://github.com/{address}"
            print_row(*record.values(), *[""] * (1 + len(PARTS)))
            continue
        changes = (
            f"`{new}` for `{old}`" if new else f"no `{old}`"
            for old, new in pair.changes.items()
        )
        record["theirs"] += f" ({commit_of(clone)}, {licence})"
        record["terms"] = "; ".join(filter(None, (*changes, pair.terms))) or "none"
        record["sizes"] = "; ".join(map(str, pair.cases))
        found = compare(pair, load(pair, folder))
        figures = (f"{found[p]:.0e}" if p in found else "" for p in PARTS)
        print_row(*record.values(), *figures)
        # "All are at most", not "none is above": a NaN is neither.
        passed = all(value <= pair.tolerance for value in found.values())
        record |= {"differences": found, "tolerance": pair.tolerance, "passed": passed}
    return records


def compare_normalisation(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Prints whether couplings sum to one for ever wider votes; returns the rows."""
    print("\nVariational Bayes: the smallest sum of the couplings of an input.\n")
    print_row("deviation of votes", "ours", "all finite", "theirs", "all finite")
    print_row("--:", *["--:", "---"] * 2)
    module, records = load(VARIATIONAL_BAYES, folder), []
    for deviation in (0.2, 0.5, 1.0, 3.0):
        record = normalisation(module, deviation)
        ours, theirs = record["ours"], record["theirs"]
        cells = (
            cell
            for side in (ours, theirs)
            for cell in (f"{side['sum']:.2g}", "yes" if side["is_finite"] else "no")
        )
        print_row(deviation, *cells)
        record["passed"] = ours["is_finite"] and abs(ours["sum"] - 1) < 1e-12
        records.append(record)
    return records


def commit_of(folder: pathlib.Path) -> str:
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "no commit"


def print_row(*cells: Any) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true")
    what.add_argument("--clones", type=pathlib.Path, metavar="FOLDER")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    if arguments.list:
        list_pairs()
        return 0
    import torch

    torch.set_default_dtype(torch.float64)
    jax.config.update("jax_enable_x64", True)  # noqa: FBT003
    about = {
        "capsjax": commit_of(pathlib.Path(__file__).parent),
        "jax": jax.__version__,
        "torch": torch.__version__,
    }
    print(", ".join(f"{name} {version}" for name, version in about.items()), end="\n\n")
    records = {"about": about, "pairs": compare_all(arguments.clones)}
    if VARIATIONAL_BAYES.clone.within(arguments.clones).exists():
        records["normalisation"] = compare_normalisation(arguments.clones)
    if arguments.json:
        arguments.json.write_text(json.dumps(records, indent=2) + "\n")
    rows = [*records["pairs"], *records.get("normalisation", [])]
    return int(not all(record.get("passed", True) for record in rows))


if __name__ == "__main__":
    sys.exit(main())
