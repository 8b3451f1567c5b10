"""Statistics of values over examples, which add up over batches."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Shaped


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Statistics:
    r"""Mean, spread and range of values over examples; ``+`` joins two sets of them.

    With the weights ``w_a`` and ``w_b`` of two sets, and the difference ``e`` of their
    means,

    .. math::
        mean = mean_a + e \, w_b / (w_a + w_b), \quad
        spread = spread_a + spread_b + e^2 \, w_a w_b / (w_a + w_b) .

    Attributes:
        weight: Sum of the examples' weights, for each value.
        mean: Weighted mean; 0 without examples.
        spread: Weighted sum of squared deviations from the mean.
        lowest: Smallest value of an example with a weight; infinity without examples.
        highest: Largest value; minus infinity without examples.

    Examples:
        >>> import jax.numpy as jnp
        >>> from capsjax.diagnostics import Statistics
        >>> seen = Statistics.of(jnp.array([1.0, 2.0]), jnp.ones(2))
        >>> seen += Statistics.of(jnp.array([6.0]), jnp.ones(1))
        >>> print(seen.mean, seen.highest)
        3.0 6.0

    References:
        Chan, Golub and LeVeque 1979, *Updating Formulae and a Pairwise Algorithm for
        Computing Sample Variances*.
    """

    weight: Float[Array, "*axes"]
    mean: Float[Array, "*axes"]
    spread: Float[Array, "*axes"]
    lowest: Float[Array, "*axes"]
    highest: Float[Array, "*axes"]

    @classmethod
    def of(
        cls, values: Float[ArrayLike, "..."], weight: Shaped[ArrayLike, "..."]
    ) -> "Statistics":
        """Computes the statistics of one batch.

        Args:
            values: Values of examples, along the first axis.
            weight: Weight of each, at least 0, with axes that broadcast to the values'.
        """
        values = jnp.asarray(values)
        weight = jnp.broadcast_to(weight, values.shape).astype(values.dtype)
        counts, total = weight > 0, weight.sum(0)
        values = jnp.where(counts, values, 0)  # Whatever a masked example holds.
        mean = divide(jnp.sum(weight * values, axis=0), total)
        return cls(
            total,
            mean,
            jnp.sum(weight * (values - mean[None]) ** 2, axis=0),
            jnp.min(values, axis=0, where=counts, initial=jnp.inf),
            jnp.max(values, axis=0, where=counts, initial=-jnp.inf),
        )

    def __add__(self, other: "Statistics") -> "Statistics":
        weight = self.weight + other.weight
        part = divide(other.weight, weight)
        difference = other.mean - self.mean
        return Statistics(
            weight,
            self.mean + difference * part,
            self.spread + other.spread + difference**2 * self.weight * part,
            jnp.minimum(self.lowest, other.lowest),
            jnp.maximum(self.highest, other.highest),
        )

    @property
    def deviation(self) -> Float[Array, "*axes"]:
        """Standard deviation over the examples, by their number; 0 without examples."""
        return jnp.sqrt(divide(self.spread, self.weight))


def divide(part: Float[Array, "..."], whole: Float[Array, "..."]) -> Array:
    """Returns ``part / whole``, and 0 where ``whole`` is 0."""
    return jnp.where(whole != 0, part / jnp.where(whole != 0, whole, 1), 0)
