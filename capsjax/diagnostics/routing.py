"""Measures of couplings.

Letters: ``i`` input capsules, ``j`` output capsules.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Shaped

from capsjax.diagnostics.statistics import Statistics, divide

# Both the mean and the standard deviation of a dead capsule's activation are below.
DEAD = 0.01
# A saturated capsule's activation is never below.
SATURATED = 0.95
# A coupling above this many times the uniform share is active.
ACTIVE = 1.5
# A starved output's mean share of the inputs is below this part of the uniform share.
STARVED = 0.1
_MEASURES = (
    "t_score",
    "d_score",
    "alive_rate",
    "active_rate",
    "active_rate_of_alive",
    "bonding",
    "dynamics",
)


def coupling_entropy(
    coupling: Float[ArrayLike, "*batch i j"], *, none_of_the_above: bool = False
) -> Float[Array, "*batch i"]:
    r"""Computes the entropy of each input's couplings, in nats.

    .. math::
        H_i = -\sum_j c_{ij} \ln c_{ij}

    Args:
        coupling: Couplings, from 0 to 1.
        none_of_the_above: True if the rest to one goes to none of the outputs, which is
            one more choice.

    Returns:
        The entropy of each input: from 0, all of it to one output, to ``ln J``.

    Examples:
        >>> import jax.numpy as jnp
        >>> from capsjax.diagnostics import coupling_entropy
        >>> coupling = jnp.array([[0.5, 0.5], [1, 0]])
        >>> [f"{nats:.3f}" for nats in coupling_entropy(coupling)]
        ['0.693', '0.000']

    References:
        Renzulli, Tartaglione and Grangetto 2022, *REM: Routing Entropy Minimization for
        Capsule Networks*, https://arxiv.org/abs/2204.01298.
    """
    coupling = jnp.asarray(coupling)
    entropy = jnp.sum(jax.scipy.special.entr(coupling), axis=-1)
    if none_of_the_above:
        nowhere = jnp.clip(1 - coupling.sum(-1), 0, 1)
        entropy = entropy + jax.scipy.special.entr(nowhere)
    return entropy


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RoutingStatistics:
    """Statistics of a layer's routing over examples; ``+`` joins two sets of them.

    Attributes:
        input: Activations of the inputs.
        output: Activations of the outputs.
        entropy: Entropy of each input's couplings, relative to ``ln J``.
        active: 1 where an input has a coupling above ``1.5 / J``, else 0.
        largest: The largest coupling of each input, where it is active.
        bond: Couplings above ``1.5 / J``, and 0 for others, where the input is active.
        share: Share of the inputs' activation that goes to each output,
            ``sum_i c_ij a_i / sum_i a_i``.
        num_choices: ``J``; the largest if it differs between examples.

    Examples:
        Two inputs, each sent to an output of its own in all of three examples: a tree.

        >>> import jax.numpy as jnp
        >>> from capsjax.diagnostics import RoutingStatistics
        >>> coupling = jnp.broadcast_to(jnp.eye(2), (3, 2, 2))
        >>> seen = RoutingStatistics.of(coupling, jnp.ones((3, 2)), jnp.ones((3, 2)))
        >>> print(seen.t_score, seen.bonding, seen.dynamics)
        1.0 1.0 0.0

    References:
        Peer, Stabinger and Rodriguez-Sanchez 2018, *Increasing the adversarial
        robustness and explainability of capsule networks with gamma-capsules*,
        https://arxiv.org/abs/1812.09707: T-score and D-score. Mitterreiter, Koch,
        Giesen and Laue 2023, *Why Capsule Neural Networks Do Not Scale*, AAAI,
        https://arxiv.org/abs/2301.01583: vibrance, bonding, dynamics, dead capsules.
    """

    input: Statistics
    output: Statistics
    entropy: Statistics
    active: Statistics
    largest: Statistics
    bond: Statistics
    share: Statistics
    num_choices: Float[Array, ""]

    @classmethod
    def of(
        cls,
        coupling: Float[ArrayLike, "*batch i j"],
        input_activation: Float[ArrayLike, "*batch i"],
        output_activation: Float[ArrayLike, "*batch j"],
        *,
        input_mask: Bool[ArrayLike, "*batch i"] | None = None,
        output_mask: Bool[ArrayLike, "*batch j"] | None = None,
        none_of_the_above: bool = False,
    ) -> "RoutingStatistics":
        """Computes the statistics of one batch.

        Args:
            coupling: Couplings, from 0 to 1.
            input_activation: Length or probability of each input.
            output_activation: Length or probability of each output.
            input_mask: False for padding, which does not count.
            output_mask: False for outputs that get nothing; they do not count.
            none_of_the_above: True if an input may be sent to none of the outputs.
        """
        return _statistics(
            *(coupling, input_activation, output_activation, input_mask, output_mask),
            none_of_the_above=none_of_the_above,
        )

    def __add__(self, other: "RoutingStatistics") -> "RoutingStatistics":
        return _joined(self, other)

    def measures(self) -> dict[str, Shaped[Array, ""]]:
        """Computes all measures by one program: the properties, and counts.

        The counts are ``dead_inputs``, ``saturated_inputs``, ``never_active_inputs``,
        ``dead_outputs``, ``saturated_outputs`` and ``starved_outputs``.
        """
        return _measures(self)

    @property
    def t_score(self) -> Float[Array, ""]:
        """``1 - mean_i H(c_i) / ln J``: 0 for uniform couplings, 1 for a tree.

        NaN if no input has a choice.
        """
        weight = self.entropy.weight
        return 1 - jnp.sum(self.entropy.mean * weight) / weight.sum()

    @property
    def d_score(self) -> Float[Array, ""]:
        """``max_j sd(|v_j|)`` over the examples: how far outputs follow the input."""
        return self.output.deviation.max()

    @property
    def is_dead(self) -> Bool[Array, " i"]:
        """True for inputs whose activation has mean and deviation below 0.01."""
        return is_dead(self.input)

    @property
    def alive_rate(self) -> Float[Array, ""]:
        """Share of the inputs that are not dead: the first rate of the vibrance."""
        is_alive = (~self.is_dead).astype(self.input.mean.dtype)
        return jnp.mean(is_alive, where=self._sends)

    @property
    def active_rate(self) -> Float[Array, ""]:
        """Mean share of the examples on which an input is active: the second rate."""
        return jnp.mean(self.active.mean, where=self._sends)

    @property
    def active_rate_of_alive(self) -> Float[Array, ""]:
        """The same, of the inputs that are not dead: the third; NaN if all are dead."""
        return jnp.mean(self.active.mean, where=self._sends & ~self.is_dead)

    @property
    def is_never_active(self) -> Bool[Array, " i"]:
        """True for inputs that prefer no output on any example."""
        return self._sends & (self.active.mean == 0)

    @property
    def bonding(self) -> Float[Array, ""]:
        r"""Mean largest coupling of the inputs, where they are active.

        Inputs are weighted by their share ``a_i`` of active examples:
        ``sum_i a_i mean(max_j c_ij) / sum_i a_i``; 0 if no input is ever active.
        """
        return self._by_activity(self.largest.mean)

    @property
    def dynamics(self) -> Float[Array, ""]:
        r"""Variation of the couplings over examples: 0 for a static parse tree.

        .. math::
            \sum_i a_i \frac{mean_j \, sd(c_{ij})}
                {\max c_i \sqrt{(1 - 1/J) / J}} / \sum_i a_i

        over the examples on which the input is active, with its share ``a_i`` of them.
        """
        gets = self.output.weight > 0
        deviation = jnp.mean(self.bond.deviation, axis=-1, where=gets[None])
        random = jnp.sqrt((1 - 1 / self.num_choices) / self.num_choices)
        most = jnp.maximum(self.largest.highest, 0)
        return self._by_activity(divide(deviation, most * random))

    @property
    def is_starved(self) -> Bool[Array, " j"]:
        """True for outputs whose mean share of the inputs is below ``0.1 / J``.

        Outputs that are masked in all examples are not.
        """
        share = self.share
        return (share.mean < STARVED / self.num_choices) & (share.weight > 0)

    @property
    def _sends(self) -> Bool[Array, " i"]:
        """True for inputs that are not masked in all examples."""
        return self.input.weight > 0

    def _by_activity(self, value: Float[Array, " i"]) -> Float[Array, ""]:
        return divide(jnp.sum(self.active.mean * value), self.active.mean.sum())


# An eager call would compile every operation.
@functools.partial(jax.jit, static_argnames="none_of_the_above")
def _statistics(
    coupling: Float[Array, "*batch i j"],
    input_activation: Float[Array, "*batch i"],
    output_activation: Float[Array, "*batch j"],
    input_mask: Bool[Array, "*_ i"] | None,
    output_mask: Bool[Array, "*_ j"] | None,
    *,
    none_of_the_above: bool,
) -> RoutingStatistics:
    i, j = coupling.shape[-2:]
    c = coupling.reshape(-1, i, j)
    own, upper = input_activation.reshape(-1, i), output_activation.reshape(-1, j)
    sends = _mask(input_mask, own)
    gets = _mask(output_mask, upper)
    present = sends[..., None] * gets[:, None]
    c = jnp.where(present > 0, c, 0)
    own = jnp.where(sends > 0, own, 0)

    num_choices = gets.sum(-1, keepdims=True) + none_of_the_above
    entropy = coupling_entropy(c, none_of_the_above=none_of_the_above)
    entropy = divide(entropy, jnp.log(num_choices))
    bond = jnp.where(c > ACTIVE / num_choices[..., None], c, 0)
    largest = bond.max(-1)
    is_active = sends * (largest > 0)
    total = own.sum(-1, keepdims=True)
    mass = jnp.einsum("mij,mi->mj", c, own)
    return RoutingStatistics(
        Statistics.of(own, sends),
        Statistics.of(upper, gets),
        # A single choice is no decision.
        Statistics.of(entropy, sends * (num_choices > 1)),
        Statistics.of(is_active, sends),
        Statistics.of(largest, is_active),
        Statistics.of(bond, is_active[..., None] * gets[:, None]),
        Statistics.of(divide(mass, total), gets * (total > 0)),
        num_choices.max(),
    )


@jax.jit
def _joined(one: RoutingStatistics, other: RoutingStatistics) -> RoutingStatistics:
    parts = {
        field.name: getattr(one, field.name) + getattr(other, field.name)
        for field in dataclasses.fields(one)
        if field.name != "num_choices"
    }
    most = jnp.maximum(one.num_choices, other.num_choices)
    return RoutingStatistics(**parts, num_choices=most)


@jax.jit
def _measures(statistics: RoutingStatistics) -> dict[str, Array]:
    counts = {
        "dead_inputs": is_dead(statistics.input),
        "saturated_inputs": is_saturated(statistics.input),
        "never_active_inputs": statistics.is_never_active,
        "dead_outputs": is_dead(statistics.output),
        "saturated_outputs": is_saturated(statistics.output),
        "starved_outputs": statistics.is_starved,
    }
    return {name: getattr(statistics, name) for name in _MEASURES} | {
        name: jnp.sum(which) for name, which in counts.items()
    }


def is_dead(activation: Statistics) -> Bool[Array, " n"]:
    """Returns which capsules are dead: mean and deviation of the activation below 0.01.

    Capsules that are masked in all examples are not.
    """
    is_low = (activation.mean < DEAD) & (activation.deviation < DEAD)
    return is_low & (activation.weight > 0)


def is_saturated(activation: Statistics) -> Bool[Array, " n"]:
    """Returns which capsules separate nothing: the activation is never below 0.95."""
    return (activation.lowest >= SATURATED) & (activation.weight > 0)


def _mask(mask: Any, like: Float[Array, "m n"]) -> Float[Array, "m n"]:
    if mask is None:
        return jnp.ones_like(like)
    return mask.reshape(like.shape).astype(like.dtype)


# ---- predictions by other couplings


def uniformly(logit: Float[Array, "*batch i j"]) -> Float[Array, "*batch i j"]:
    """Gives every output the same share, ``1 / J``, whatever the logits are.

    As ``compete`` of an algorithm or a layer, it swaps its couplings for uniform ones.

    Examples:
        >>> import jax.numpy as jnp
        >>> from capsjax import DynamicRouting
        >>> from capsjax.diagnostics import uniformly
        >>> votes = jnp.ones((1, 3, 4, 8))  # [batch, i, j, d]
        >>> routed = DynamicRouting()(votes, compete=uniformly)
        >>> print(routed.coupling.min(), routed.coupling.max())
        0.25 0.25

    References:
        Paik, Kwak and Kim 2019, *Capsule Networks Need an Improved Routing Algorithm*,
        https://arxiv.org/abs/1907.13327.
    """
    return jnp.full_like(logit, 1 / logit.shape[-1])


def is_changed(
    named: Shaped[ArrayLike, "*batch n"], reference: Shaped[ArrayLike, "*batch n"]
) -> Bool[Array, "*batch"]:
    """Returns whether predictions differ from those of another number of rounds.

    Args:
        named: True or 1 for each class that is predicted.
        reference: The prediction to compare with.

    Examples:
        >>> import jax.numpy as jnp
        >>> from capsjax.diagnostics import is_changed
        >>> named = jnp.array([[0, 1], [1, 0]])
        >>> print(is_changed(named, jnp.array([[0, 1], [0, 1]])))
        [False  True]

    References:
        Paik, Kwak and Kim 2019, https://arxiv.org/abs/1907.13327.
    """
    return jnp.any((jnp.asarray(named) > 0) != (jnp.asarray(reference) > 0), axis=-1)
