"""Optimizers: values for the section ``optimizer`` of a config; Optax does the work.

``OPTIMIZERS`` maps a word to each.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from capsjax.bounds import Allowed, Decay, Share, Steps, Weight, above, between


@dataclasses.dataclass(frozen=True)
class Optimizer(abc.ABC):
    """An optimizer with its learning rates, clipping, and averaging of weights.

    Attributes:
        learning_rate: The highest rate.
        schedule: ``constant``, ``exponential`` (x ``decay_rate`` every ``decay_steps``
            steps, continuously) or ``cosine`` (to ``floor`` at the last step of the
            run).
        decay_rate: Factor of the exponential schedule.
        decay_steps: Steps in which the exponential schedule falls by that factor.
        floor: The lowest rate of a schedule.
        last_cosine: Share of the run's steps, at its end, in which the rate falls by a
            cosine to ``floor``, from where the schedule is then; 0 for none.
        warmup_steps: Steps in which the rate rises linearly from zero.
        clip_norm: Largest norm of the gradients, over all weights; larger ones are
            scaled down to it; 0 for no clipping.
        average: Decay of the moving average of weights, which is evaluated in place of
            the weights. It grows as min(average, (1 + step) / (10 + step)). 0 to
            evaluate the weights themselves.
    """

    # With this bound no update of finite gradients overflows.
    learning_rate: Annotated[float, above(0, 1000)] = 1e-3
    schedule: Literal["constant", "exponential", "cosine"] = "cosine"
    decay_rate: Annotated[float, Allowed("above 0, below 1", lambda v: 0 < v < 1)] = (
        0.96
    )
    decay_steps: Annotated[int, between(1, 2**31 - 1)] = 2000
    floor: Weight = 1e-6
    warmup_steps: Steps = 0
    clip_norm: Weight = 0.0
    average: Decay = 0.0
    last_cosine: Share = 0.0

    @abc.abstractmethod
    def update_rule(self, rate: Callable[..., Any]) -> Any:
        """Makes the Optax transformation that follows a schedule of rates."""

    def check(self) -> None:
        """Compares the rates.

        Raises:
            ValueError: If ``floor`` is above ``learning_rate``.
        """
        if self.floor > self.learning_rate:
            raise ValueError(
                f"floor must be at most learning_rate={self.learning_rate}, got "
                f"{self.floor}."
            )

    def make(self, num_steps: int) -> Any:
        """Makes the Optax transformation for a run of ``num_steps`` steps."""
        import optax

        rule = self.update_rule(self._rates(num_steps))
        if not self.clip_norm:
            return rule
        return optax.chain(optax.clip_by_global_norm(self.clip_norm), rule)

    def _rates(self, num_steps: int) -> Callable[..., Any]:
        import optax

        rate = self.learning_rate
        after = max(1, num_steps - self.warmup_steps)
        schedule = {
            "constant": lambda: optax.constant_schedule(rate),
            "exponential": lambda: optax.exponential_decay(
                rate, self.decay_steps, self.decay_rate, end_value=self.floor
            ),
            "cosine": lambda: optax.cosine_decay_schedule(
                rate, after, alpha=self.floor / rate
            ),
        }[self.schedule]()
        if self.warmup_steps:
            rise = optax.linear_schedule(0.0, rate, self.warmup_steps)
            schedule = optax.join_schedules([rise, schedule], [self.warmup_steps])
        if last := round(self.last_cosine * num_steps):
            return self._ended_by_cosine(schedule, num_steps - last, last)
        return schedule

    def _ended_by_cosine(
        self, schedule: Callable[..., Any], start: int, last: int
    ) -> Callable[..., Any]:
        import jax.numpy as jnp
        import optax

        cosine = optax.cosine_decay_schedule(1.0, last)

        def rate(step: Any) -> Any:
            share = cosine(jnp.maximum(step - start, 0))
            before = schedule(jnp.minimum(step, start))
            return share * before + (1 - share) * self.floor

        return rate


@dataclasses.dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma and Ba 2015).

    Attributes:
        b1: Decay of the first moment.
        b2: Decay of the second moment.
        eps: Number added to the root of the second moment.
    """

    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: Annotated[float, between(1e-30, 1)] = 1e-8

    def update_rule(self, rate: Callable[..., Any]) -> Any:
        """Makes Optax's ``adam``."""
        import optax

        return optax.adam(rate, self.b1, self.b2, self.eps)


@dataclasses.dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    Attributes:
        weight_decay: Share of each weight that a step removes, times the rate.
    """

    weight_decay: Annotated[float, between(0, 1)] = 1e-4

    def update_rule(self, rate: Callable[..., Any]) -> Any:
        """Makes Optax's ``adamw``."""
        import optax

        decay = self.weight_decay
        return optax.adamw(rate, self.b1, self.b2, self.eps, weight_decay=decay)


@dataclasses.dataclass(frozen=True)
class Lion(Optimizer):
    """Lion (Chen et al. 2023), which needs a third to a tenth of Adam's rate.

    Attributes:
        b1: Weight of the momentum in the update's sign.
        b2: Decay of the momentum.
        weight_decay: Share of each weight that a step removes, times the rate.
    """

    b1: Decay = 0.9
    b2: Decay = 0.99
    weight_decay: Annotated[float, between(0, 1)] = 1e-3

    def update_rule(self, rate: Callable[..., Any]) -> Any:
        """Makes Optax's ``lion``."""
        import optax

        return optax.lion(rate, self.b1, self.b2, weight_decay=self.weight_decay)


@dataclasses.dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent.

    Attributes:
        momentum: Decay of the momentum; 0 for none.
        nesterov: True for a momentum that looks one step ahead.
    """

    momentum: Decay = 0.9
    nesterov: bool = False

    def update_rule(self, rate: Callable[..., Any]) -> Any:
        """Makes Optax's ``sgd``."""
        import optax

        return optax.sgd(rate, self.momentum or None, nesterov=self.nesterov)


OPTIMIZERS: Mapping[str, type[Optimizer]] = {
    "adam": Adam,
    "adamw": AdamW,
    "lion": Lion,
    "sgd": SGD,
}
