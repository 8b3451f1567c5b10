"""Confusions: counts ``[n, n]`` with a row for each label."""

import numpy as np
from jaxtyping import Int


def commonest_confusions(
    count: Int[np.ndarray, "n n"], most: int
) -> list[tuple[int, int, int]]:
    """Returns label, prediction and count of the confusions, the commonest first.

    Args:
        count: How often each class (a row) was predicted as each other (a column).
        most: The most pairs; pairs without images are left out.
    """
    wrong = count * (1 - np.eye(len(count), dtype=count.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    order = order[wrong.ravel()[order] > 0]
    rows, columns = np.unravel_index(order, wrong.shape)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return [(row, column, int(wrong[row, column])) for row, column in pairs]
