"""Routing algorithms as ONNX operators, with all rounds written out.

Letters: ``b`` batch, ``i`` input capsules with ``c`` components, ``j`` output capsules
with ``d``. Votes are ``[b, j, i, d]``, couplings and logits ``[b, j, i, 1]``, poses
``[b, j, 1, d]``.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from capsjax.exporting.errors import ExportError
from capsjax.exporting.onnx_graph import Value
from capsjax.routings import (
    Algorithm,
    DynamicRouting,
    EMRouting,
    InvertedAttention,
    SelfAttention,
    SelfRouting,
    UniformRouting,
    VariationalBayesRouting,
)

# As in capsjax.routings: ``inverted_attention``, ``self_routing``, ``gaussian``.
_EPSILON, _LEAST_SHARE, _LEAST_MASS, _FARTHEST = 1e-5, 1e-12, 1e-7, 1e20
# Divides a pose of length zero.
_TINY = 1e-30


class Windows(NamedTuple):
    """Windows of a map, which are examples of a batch, one after the other.

    Attributes:
        places: The position on the map of each position in each window, ``[n, k]``; -1
            outside the map.
        types: Kinds of capsules at each position.
        competes: True if all windows that hold an input compete for it.
    """

    places: np.ndarray
    types: int
    competes: bool

    def num_inputs(self) -> np.ndarray:
        """Returns the inputs of each window, a part of those that several share."""
        sends = self.places >= 0
        if self.competes:
            number = np.unique_counts(self.places)
            shared = number.counts[np.searchsorted(number.values, self.places)]
            sends = sends / shared
        return self.types * sends.sum(1)

    def parts(self, log_total: Value) -> Value:
        """Adds the part of each input that goes to each window; ``[b, 1, i, 1]``.

        Args:
            log_total: Logarithm of the sum of the outputs' exponentials.
        """
        flat = self.places.ravel()
        each = [
            [
                own,
                *(n for n in np.flatnonzero(flat == place) if n != own and place >= 0),
            ]
            for own, place in enumerate(flat)
        ]
        most = max(map(len, each))
        index = [[*one, *[one[0]] * (most - len(one))] for one in each]
        is_more = [np.arange(most) >= len(one) for one in each]
        total = log_total.reshape(-1, flat.size, self.types)
        total = total.apply("Gather", np.array(index).ravel(), axis=1)
        total = total.reshape(-1, flat.size, most, self.types)
        total = total + np.where(is_more, -1e30, 0)[..., None]
        first = total.apply("Softmax", axis=2).apply("Gather", np.array([0]), axis=2)
        return first.reshape(-1, 1, self.places.shape[1] * self.types, 1)


class Inputs(NamedTuple):
    """What an algorithm routes.

    Attributes:
        capsules: The input capsules, ``[b, i, c]``.
        votes: Their votes.
        size: The sizes ``i``, ``j`` and ``d``.
        parameters: The algorithm's own parameters, by name.
        presence: Activations of the inputs, ``[b, 1, i, 1]``; None for their lengths.
        windows: The windows, if the batch is made of them.
        prefix: Name of the layer.
    """

    capsules: Value
    votes: Value
    size: Mapping[str, int]
    parameters: Mapping[str, np.ndarray]
    presence: Value | None = None
    windows: Windows | None = None
    prefix: str = "class_caps"

    @property
    def activation(self) -> Value:
        """Activations of the input capsules, ``[b, 1, i, 1]``."""
        if self.presence is not None:
            return self.presence
        return self.capsules.norm().reshape(0, 1, -1, 1)

    @property
    def shares_windows(self) -> bool:
        """True if windows compete for the inputs."""
        return self.windows is not None and self.windows.competes

    def of_outputs(self, name: str) -> np.ndarray:
        """Returns the parameter ``[j]`` or ``[j, d]`` of that name for poses."""
        return self.parameters[name].reshape(1, self.size["j"], 1, -1)

    def couple(self, logit: Value) -> Value:
        """Adds the competition for the inputs."""
        coupling = logit.apply("Softmax", axis=1)
        if not self.shares_windows:
            return coupling
        assert self.windows is not None
        most = logit.apply("ReduceMax", np.array([1]))
        total = (logit - most).apply("Exp").sum(1).apply("Log") + most
        return coupling * self.windows.parts(total)

    def start(self) -> Any:
        """Returns the couplings of the first round."""
        if self.shares_windows:
            return self.couple(self.votes.sum(3) * 0)
        j = self.size["j"]
        return np.full((1, j, 1, 1), 1 / j, np.float32)

    def start_sum(self) -> Value:
        """Adds up the votes in their first shares."""
        if self.shares_windows:
            return _add_up(self.start(), self.votes)
        return self.votes.sum(2) / self.size["j"]


def route(algorithm: Algorithm, inputs: Inputs) -> tuple[Value, Value]:
    """Adds an algorithm; returns poses ``[b, j, d]`` and activations ``[b, j]``.

    Raises:
        ExportError: If the algorithm has no form in ONNX.
    """
    add = _ROUTINGS.get(type(algorithm))
    if add is None:
        raise ExportError(
            f"the routing must be {', '.join(one.__name__ for one in _ROUTINGS)} for "
            f"ONNX, got {type(algorithm).__name__}: export it as stablehlo."
        )
    pose, activation = add(algorithm, inputs)
    return pose.reshape(0, 0, -1), activation.reshape(0, -1)


def squash(s: Value) -> Value:
    """Computes ``capsjax.squash`` along the last axis."""
    norm = s.norm()
    return s * (norm / (1 + norm * norm))


def exponential_squash(s: Value) -> Value:
    """Adds ``capsjax.ops.exponential_squash`` of the last axis."""
    norm = s.norm()
    # 1 - exp(-|s|), without losing digits of short vectors.
    share = (norm / 2).apply("Tanh") * (1 + (-norm).apply("Exp"))
    return s * (share / norm.clip(_TINY))


def _add_up(share: Value, votes: Value) -> Value:
    return share.transpose(0, 1, 3, 2) @ votes


def _agree(votes: Value, pose: Value) -> Value:
    return votes @ pose.transpose(0, 1, 3, 2)


def _or_nowhere(logit: Value) -> Value:
    """Computes a softmax with one more output, whose logit is zero."""
    largest = logit.apply("ReduceMax", np.array([1])).apply("Relu")
    share = (logit - largest).apply("Exp")
    return share / (share.sum(1) + (-largest).apply("Exp"))


def _biased_squash(s: Value, inputs: Inputs) -> Value:
    return squash(s + inputs.of_outputs("bias") if "bias" in inputs.parameters else s)


def _dynamic(algorithm: DynamicRouting, inputs: Inputs) -> tuple[Value, Value]:
    votes, couple, s, logit = inputs.votes, inputs.couple, inputs.start_sum(), None
    if algorithm.none_of_the_above:
        if inputs.shares_windows:
            raise ExportError(
                "none_of_the_above=True with compete='image' has no form in ONNX: "
                "export it as stablehlo."
            )
        couple, s = _or_nowhere, votes.sum(2) / (inputs.size["j"] + 1)
    pose = _biased_squash(s, inputs)
    for _ in range(1, algorithm.num_iterations):
        agreement = _agree(votes, pose)
        logit = agreement if logit is None else logit + agreement
        pose = _biased_squash(_add_up(couple(logit), votes), inputs)
    return pose, pose.norm()


def _uniform(_: UniformRouting, inputs: Inputs) -> tuple[Value, Value]:
    pose = _biased_squash(inputs.start_sum(), inputs)
    return pose, pose.norm()


def _self_attention(algorithm: SelfAttention, inputs: Inputs) -> tuple[Value, Value]:
    scale = algorithm.scale or math.sqrt(inputs.size["d"])
    votes = inputs.votes
    share = inputs.couple(_agree(votes, votes.sum(2) / scale))
    if "bias" in inputs.parameters:
        share = share + inputs.parameters["bias"].T[None, :, :, None]
    pose = exponential_squash(_add_up(share, votes))
    return pose, pose.norm()


def _inverted_attention(
    algorithm: InvertedAttention, inputs: Inputs
) -> tuple[Value, Value]:
    votes, own, mean = inputs.votes, inputs.parameters, np.array([-1])

    def layer_norm(s: Value) -> Value:
        centred = s - s.apply("ReduceMean", mean)
        variance = (centred * centred).apply("ReduceMean", mean)
        normal = centred / (variance + _EPSILON).apply("Sqrt")
        return normal * own["scale"] + own["offset"]

    pose = layer_norm(inputs.start_sum())
    for _ in range(1, algorithm.num_iterations):
        coupling = inputs.couple(_agree(votes, pose / math.sqrt(inputs.size["d"])))
        pose = layer_norm(_add_up(coupling, votes))
    return pose, pose @ own["score"][:, None] + own["score_bias"]


def _self_routing(_: SelfRouting, inputs: Inputs) -> tuple[Value, Value]:
    own = inputs.parameters
    name = f"{inputs.prefix}/route_weight"
    logit = multiply_each(inputs.capsules, name, own["route_weight"])
    logit = logit.transpose(1, 2, 0).reshape(0, 0, 0, 1)
    coupling = inputs.couple(logit + own["route_bias"].T[None, :, :, None])
    share = coupling * inputs.activation
    mass, total = share.sum(2), inputs.activation.sum(2)
    pose = _add_up(share, inputs.votes) / mass.clip(_LEAST_SHARE)
    return pose, mass / total.clip(_LEAST_SHARE)


def multiply_each(capsules: Value, name: str, weight: np.ndarray) -> Value:
    """Multiplies each input capsule by a matrix of its own: ``[i, b, n]``.

    Args:
        capsules: The capsules.
        name: Name of the matrices.
        weight: The matrices, ``[i, n, c]``.
    """
    own = capsules.graph.weight(name, weight.transpose(0, 2, 1), axis=0)
    return capsules.transpose(1, 0, 2) @ own


def _gaussian(algorithm: Any, inputs: Inputs, fit: Callable) -> tuple[Value, Value]:
    """Alternates moments of the votes and fits; see ``routings.gaussian``."""
    votes = inputs.votes

    def square(mean: Value) -> Value:
        away = votes - mean
        return (away * away).clip(high=_FARTHEST)

    def moments(share: Value) -> tuple[Value, Value, Value]:
        mass = share.sum(2)
        weight = share / mass.clip(_LEAST_MASS)
        mean = _add_up(weight, votes)
        return mass, mean, _add_up(weight, square(mean))

    share = inputs.activation * inputs.start()
    mean, variance, offset, activation = fit(1, *moments(share))
    for number in range(2, algorithm.num_iterations + 1):
        distance = _agree(square(mean), 1 / variance)
        share = inputs.couple(offset - distance / 2) * inputs.activation
        mean, variance, offset, activation = fit(number, *moments(share))
    return mean, activation


def _em(algorithm: EMRouting, inputs: Inputs) -> tuple[Value, Value]:
    j, windows = inputs.size["j"], inputs.windows

    def relative(mass: Value) -> Value:
        if algorithm.mass == "sum":
            return mass
        if windows is None:
            return mass * (100 * j / inputs.size["i"])
        factor = (100 * j / windows.num_inputs())[:, None]
        return (mass.reshape(-1, len(factor), j) * factor).reshape(-1, j, 1, 1)

    beta_u, beta_a = inputs.of_outputs("beta_u"), inputs.of_outputs("beta_a")

    def fit(number: int, mass: Value, mean: Value, variance: Value) -> tuple:
        variance = variance + algorithm.min_variance
        entropy = (beta_u + variance.apply("Log") / 2).sum(3)
        share = (1 - 0.95**number) / (1 - 0.95**algorithm.num_iterations)
        cost = algorithm.inverse_temperature * relative(mass) * entropy
        logit = share * (beta_a - cost)
        spread = (2 * math.pi * variance).apply("Log").sum(3)
        offset = -(-logit).apply("Softplus") - spread / 2
        return mean, variance, offset, logit.apply("Sigmoid")

    return _gaussian(algorithm, inputs, fit)


def _variational_bayes(
    algorithm: VariationalBayesRouting, inputs: Inputs
) -> tuple[Value, Value]:
    dim = inputs.size["d"]
    beta = inputs.of_outputs("beta_a") - inputs.of_outputs("beta_u")

    def fit(_: int, mass: Value, mean: Value, variance: Value) -> tuple:
        count = algorithm.prior_count + mass
        freedom = algorithm.prior_freedom + dim + mass
        pull = algorithm.prior_count * (mass / count) * mean * mean
        inverse = 1 / algorithm.prior_precision + mass * variance + pull
        halves = (freedom - np.arange(dim, dtype=np.float32)) / 2
        concentration = algorithm.prior_concentration + mass
        log_precision = (_digamma(halves) - (inverse / 2).apply("Log")).sum(3)
        log_share = _digamma(concentration) - _digamma(concentration.sum(1))
        entropy = dim / 2 * math.log(2 * math.pi * math.e) - log_precision / 2
        offset = log_share + (log_precision - dim / count) / 2
        activation = beta - log_share.apply("Exp") * entropy
        # Half of log(2 pi) for each component is in all offsets: no coupling shows it.
        return mean * (mass / count), inverse / freedom, offset, activation

    return _gaussian(algorithm, inputs, fit)


def _digamma(x: Value) -> Value:
    """Computes the digamma function of positive numbers; ONNX has none.

    Eight steps of ``psi(x) = psi(x + 1) - 1 / x``, then the asymptotic series.
    """
    steps = x.apply("Unsqueeze", np.array([4])) + np.arange(8, dtype=np.float32)
    below = (1 / steps).apply("ReduceSum", np.array([4]), keepdims=0)
    inverse = 1 / (x + 8)
    square = inverse * inverse
    series = square * (1 / 12 - square * (1 / 120 - square / 252))
    return -inverse.apply("Log") - inverse / 2 - series - below


_ROUTINGS: Mapping[type, Callable[[Any, Inputs], tuple[Value, Value]]] = {
    DynamicRouting: _dynamic,
    UniformRouting: _uniform,
    SelfAttention: _self_attention,
    InvertedAttention: _inverted_attention,
    SelfRouting: _self_routing,
    EMRouting: _em,
    VariationalBayesRouting: _variational_bayes,
}
