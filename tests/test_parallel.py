"""What a function mapped over devices must know of its arrays."""

import jax
import jax.numpy as jnp

from capsjax.parallel import vary_alike


def test_what_is_shared_under_vmap_stays_shared_when_it_varies_alike():
    # A mapped result could not be returned with an output axis of None.
    mapped = jax.vmap(vary_alike, in_axes=(0, None), out_axes=[0, None])
    each, shared = mapped(jnp.ones((3, 2)), jnp.ones(4))
    assert each.shape == (3, 2)
    assert shared.shape == (4,)
