"""Distinct parse trees."""

import collections
import hashlib
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int


def parse_tree(
    coupling: Float[ArrayLike, "*batch i j"],
    label: Int[ArrayLike, "*batch"],
    *,
    num_bins: int = 11,
) -> Int[Array, "*batch i"]:
    r"""Rounds the couplings with one output to the nearest of equally spaced levels.

    .. math::
        b_i = \lfloor c_{ij} (B - 1) + 1/2 \rfloor

    for the output ``j`` of the example and ``B`` levels.

    Args:
        coupling: Couplings, from 0 to 1.
        label: The output of each example: its predicted class.
        num_bins: Number of levels, at least 2; 11 levels are 0, 0.1, ... 1.

    Returns:
        The index of each input's level, from 0.

    Examples:
        >>> import jax.numpy as jnp
        >>> from capsjax.diagnostics import parse_tree
        >>> coupling = jnp.array([[[0.9, 0.1], [0.33, 0.67]]])
        >>> print(parse_tree(coupling, jnp.array([0])))
        [[9 3]]

    References:
        Renzulli, Tartaglione and Grangetto 2022, *REM: Routing Entropy Minimization for
        Capsule Networks*, https://arxiv.org/abs/2204.01298.
    """
    label = jnp.asarray(label)[..., None, None]
    own = jnp.take_along_axis(jnp.asarray(coupling), label, axis=-1)[..., 0]
    return jnp.floor(own * (num_bins - 1) + 0.5).astype(jnp.int32)


class ParseTrees:
    """Counts of the distinct parse trees of each class; ``+`` joins two sets of them.

    Keeps 16 bytes for each distinct tree.

    Attributes:
        count: By class, how many examples have each tree.

    Examples:
        >>> import numpy as np
        >>> from capsjax.diagnostics import ParseTrees
        >>> trees = ParseTrees.of(np.array([[9, 3], [9, 3], [5, 5]]), np.zeros(3, int))
        >>> print(trees.num_examples, trees.num_distinct)
        {0: 3} {0: 2}

    References:
        Renzulli, Tartaglione and Grangetto 2022, *REM: Routing Entropy Minimization for
        Capsule Networks*, https://arxiv.org/abs/2204.01298.
    """

    def __init__(self, count: dict[int, collections.Counter[bytes]]):
        self.count = count

    @classmethod
    def of(
        cls, tree: Int[ArrayLike, "m i"], label: Int[ArrayLike, " m"]
    ) -> "ParseTrees":
        """Counts the trees of one batch, by the classes of its examples.

        Args:
            tree: Levels of the couplings, from ``parse_tree``.
            label: The class whose couplings these are.
        """
        count: dict[int, collections.Counter[bytes]] = {}
        rows = np.ascontiguousarray(tree, np.int32)
        for row, own in zip(rows, np.asarray(label).tolist(), strict=True):
            key = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
            count.setdefault(own, collections.Counter())[key] += 1
        return cls(count)

    def __add__(self, other: "ParseTrees") -> "ParseTrees":
        count = {label: one.copy() for label, one in self.count.items()}
        for label, one in other.count.items():
            count.setdefault(label, collections.Counter()).update(one)
        return ParseTrees(count)

    @property
    def num_examples(self) -> dict[int, int]:
        """Number of examples by class."""
        return {label: sum(count.values()) for label, count in self.count.items()}

    @property
    def num_distinct(self) -> dict[int, int]:
        """Number of distinct trees by class."""
        return {label: len(count) for label, count in self.count.items()}

    @property
    def entropy(self) -> dict[int, float]:
        """Entropy in bits of the frequencies of the trees, by class.

        At most ``log2`` of the number of examples: all trees are distinct.
        """
        return {
            label: sum(n / total * math.log2(total / n) for n in count.values())
            for label, count in self.count.items()
            for total in (sum(count.values()),)
        }
