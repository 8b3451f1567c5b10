"""Votes: the lower capsules' predictions of the capsules above."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def cast_votes(
    capsules: Float[Array, "*batch i c"], weight: Float[Array, "*i j d c"]
) -> Float[Array, "*batch i j d"]:
    """Returns each lower capsule's prediction of each upper: ``u_hat_j|i = W_ij u_i``.

    Args:
        capsules: The lower capsules.
        weight: ``W_ij`` for each pair, or ``W_j``, shared by all lower capsules.

    References:
        Sabour, Frosst and Hinton 2017, Eq. 2.
    """
    wide = jnp.promote_types(capsules.dtype, jnp.float32)
    # The other order of operands takes three times as long on a CPU for one example.
    inputs = "i" if weight.ndim == 4 else ""
    return jnp.einsum(
        f"...ic,{inputs}jdc->...ijd", capsules, weight, preferred_element_type=wide
    )
