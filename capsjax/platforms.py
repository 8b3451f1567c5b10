"""What is fast on each kind of device: the one table of sizes and forms by platform."""

from collections.abc import Mapping
from typing import NamedTuple


class Platform(NamedTuple):
    """How the work is divided on one kind of device.

    Attributes:
        steps_per_dispatch: The most training steps in one call of the device program,
            where the config leaves the number to the platform.
        calls_ahead: Calls that are started before the outcome of an earlier one is
            read.
        largest_held_data_bytes: Training images of at most so many bytes lie on the
            device.
    """

    steps_per_dispatch: int
    calls_ahead: int
    largest_held_data_bytes: int


# Eleven steps of the paper's network in one call are 1.2 times as fast on a CPU as one
# by one (docs/performance.md), and end soon enough to stop: after four seconds.
_CPU = Platform(steps_per_dispatch=11, calls_ahead=0, largest_held_data_bytes=0)
# Not measured yet. A call of a few hundred steps takes about a second there.
_ACCELERATOR = Platform(
    steps_per_dispatch=256, calls_ahead=1, largest_held_data_bytes=2**33
)

PLATFORMS: Mapping[str, Platform] = {"cpu": _CPU}


def platform(name: str) -> Platform:
    """Returns the row of a platform of JAX's: ``cpu``, ``cuda``, ``gpu``, ``tpu``."""
    return PLATFORMS.get(name, _ACCELERATOR)
