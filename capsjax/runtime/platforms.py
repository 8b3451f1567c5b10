"""The one table of the sizes and forms that are fast, by platform.

A row is chosen when a program is lowered, not when it is traced (:func:`by_platform`),
so that an export for a GPU takes the GPU's row on a machine without one. Comments say
what was measured and what was not. docs/performance.md has the tables: "The step", "The
routing", "The convolution", "On a GPU".
"""

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from jax import export, lax


class Platform(NamedTuple):
    """The fast ways to compute, and to divide the work, on one kind of device.

    Attributes:
        steps_per_dispatch: The most training steps in one call of the device program,
            if the config leaves the number to the platform.
        calls_ahead: Calls that start before the outcome of an earlier one is read.
        largest_held_data_bytes: The most bytes of training images that lie on the
            device.
        slices_sums: Whether sums over any axis but the last are chains of slices, and
            shared results stand behind a branch: XLA:CPU is fast only so.
        block_bytes: About the bytes of votes that votes-free routing makes at a time.
        largest_block: The most input capsules in a block.
        one_input_bytes: About the most bytes of one input capsule's votes: votes-free
            routing takes fewer examples at a time where there are many outputs.
        held_votes: Pairs of a batch and of bytes. Votes are held if, by one of the
            pairs, the batch is smaller and its votes take no more bytes.
        has_fast_convolution: Whether XLA's own convolution and its gradient are fast;
            otherwise :mod:`capsjax.kernels.convolution` chooses a form by shape.
        fewest_convolved_channels: Images with fewer channels are cut into patches even
            if the convolution is fast.
    """

    steps_per_dispatch: int
    calls_ahead: int
    largest_held_data_bytes: int
    slices_sums: bool
    block_bytes: int
    largest_block: int
    one_input_bytes: int
    held_votes: tuple[tuple[int, int], ...]
    has_fast_convolution: bool
    fewest_convolved_channels: int = 0

    def routing_form(
        self, num_examples: Any, votes_bytes: Any
    ) -> Literal["votes", "votes_free"]:
        """Chooses whether routing holds all votes, or makes them block by block.

        Args:
            num_examples: Examples in the batch. The votes are held if ``jax.export``
                leaves the number open.
            votes_bytes: Bytes of the whole batch's votes.
        """
        if export.is_symbolic_dim(num_examples):
            return "votes"
        holds = any(
            num_examples < batch and votes_bytes <= most
            for batch, most in self.held_votes
        )
        return "votes" if holds else "votes_free"


_CPU = Platform(
    # Eleven steps of the paper's network in one call are 1.2 times as fast as single
    # steps (docs/performance.md), and end soon enough to stop: after four seconds.
    steps_per_dispatch=11,
    # The host computes both: nothing waits for a call's end or for a transfer. Calls
    # ahead and images on the device are 0.93 to 0.99 times as fast
    # (benchmarks/feeding.py).
    calls_ahead=0,
    largest_held_data_bytes=0,
    # From about 300 kB on, XLA:CPU splits each loop over its threads, which costs a
    # quarter more than it brings. Sums over a block are written out, and long ones
    # compile slowly.
    slices_sums=True,
    block_bytes=2**18,
    largest_block=32,
    # 1,000 outputs take three quarters of the time, forward and with gradient, for 64
    # examples at a time (4 MB) instead of 200. 100 outputs of 128 examples, 0.8 MB,
    # would take 1.3 times as long in halves.
    one_input_bytes=2**22,
    # A vector of 16 numbers is the batch of votes-free routing, which is half as fast
    # for 8 examples of the paper's network. With 262 MB of votes (1,000 classes, 512
    # inputs) it is as fast for 8, and takes 0.8 GB, held votes 1.3; for 4 examples it
    # takes twice the time and 0.8 GB, held votes 0.3.
    held_votes=((8, sys.maxsize), (16, 2**27)),
    # XLA:CPU takes thirty times the convolution's own time for its gradient.
    has_fast_convolution=False,
)
# Only ``held_votes`` was measured, on one H100; the other numbers are guesses. TPUs and
# AMD's GPUs take the same row, and nobody has tried them.
_ACCELERATOR = Platform(
    # A few hundred steps of the paper's network take about a second on an H100.
    steps_per_dispatch=256,
    calls_ahead=1,
    largest_held_data_bytes=2**33,
    slices_sums=False,
    block_bytes=2**25,
    largest_block=2**31,
    one_input_bytes=sys.maxsize,
    # Holding the votes is up to 3.5 times as fast, and takes their size once more.
    held_votes=((sys.maxsize, 2**31),),
    has_fast_convolution=True,
    fewest_convolved_channels=8,
)

PLATFORMS: Mapping[str, Platform] = {
    "cpu": _CPU,
    "cuda": _ACCELERATOR,
    "rocm": _ACCELERATOR,
    "tpu": _ACCELERATOR,
}


def platform(name: str) -> Platform:
    """Returns the row of a JAX platform: ``cpu``, ``cuda``, ``gpu``, ``tpu``."""
    return PLATFORMS.get("cuda" if name == "gpu" else name, _ACCELERATOR)


def by_platform(function: Callable[..., Any], *operands: Any) -> Any:
    """Calls ``function(*operands, platform=row)`` with the row of its later device."""
    rows = {name: platform(name) for name in PLATFORMS} | {"default": _ACCELERATOR}
    each = {row: functools.partial(function, platform=row) for row in rows.values()}
    branches = {name: each[row] for name, row in rows.items()}
    return lax.platform_dependent(*operands, **branches)
