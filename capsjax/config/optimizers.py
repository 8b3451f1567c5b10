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
    r"""An optimizer with its learning rates, clipping, and averaging of weights.

    The rate of step ``t`` of ``T``, after ``w`` steps of warm-up, is

    .. math::
        r_t = r, \quad
        r_t = \max(f, r d^{(t - w) / s}), \quad
        r_t = f + \frac{r - f}{2} \left(1 + \cos \frac{\pi (t - w)}{T - w}\right)

    by the schedule ``constant``, ``exponential`` or ``cosine``: ``r`` is the
    ``learning_rate``, ``f`` the ``floor``, ``d`` the ``decay_rate`` and ``s`` the
    ``decay_steps``. An optimizer of your own is a frozen subclass with ``update_rule``.

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

    Examples:
        >>> import dataclasses
        >>> import optax
        >>> from capsjax.config import Config, Optimizer
        >>> @dataclasses.dataclass(frozen=True)
        ... class RMSProp(Optimizer):
        ...     decay: float = 0.9
        ...
        ...     def update_rule(self, rate):
        ...         return optax.rmsprop(rate, self.decay)
        >>> config = Config(optimizer=RMSProp(learning_rate=3e-4, warmup_steps=100))
        >>> config.optimizer.schedule
        'cosine'
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
    r"""Adam: divides the mean gradient of each weight by the gradients' size.

    .. math::
        m_t = b_1 m_{t-1} + (1 - b_1) g_t, \quad
        v_t = b_2 v_{t-1} + (1 - b_2) g_t^2, \quad
        w_t = w_{t-1} - r_t \frac{m_t / (1 - b_1^t)}
            {\sqrt{v_t / (1 - b_2^t)} + \epsilon}

    Attributes:
        b1: Decay of the first moment ``m``.
        b2: Decay of the second moment ``v``.
        eps: ``epsilon``, added to the root of the second moment.

    Examples:
        >>> from capsjax.config import Adam, Config
        >>> config = Config(optimizer=Adam(schedule="exponential", decay_rate=0.9))
        >>> config.optimizer.learning_rate
        0.001

    References:
        Kingma and Ba 2015, *Adam: A Method for Stochastic Optimization*,
        https://arxiv.org/abs/1412.6980.
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
    r"""Adam with decoupled weight decay.

    .. math::
        w_t = a_t - r_t \lambda w_{t-1}

    with the weight ``a_t`` after a step of :class:`capsjax.config.Adam`.

    Attributes:
        weight_decay: ``lambda``, the share of each weight that a step removes, times
            the rate.

    Examples:
        >>> from capsjax.config import AdamW, Config
        >>> config = Config(optimizer=AdamW(learning_rate=3e-4, weight_decay=0.01))
        >>> config.optimizer.b2
        0.999

    References:
        Loshchilov and Hutter 2019, *Decoupled Weight Decay Regularization*,
        https://arxiv.org/abs/1711.05101.
    """

    weight_decay: Annotated[float, between(0, 1)] = 1e-4

    def update_rule(self, rate: Callable[..., Any]) -> Any:
        """Makes Optax's ``adamw``."""
        import optax

        decay = self.weight_decay
        return optax.adamw(rate, self.b1, self.b2, self.eps, weight_decay=decay)


@dataclasses.dataclass(frozen=True)
class Lion(Optimizer):
    r"""Lion: steps by the sign of the momentum, at a third to a tenth of Adam's rate.

    .. math::
        w_t = w_{t-1} - r_t (sign(b_1 m_{t-1} + (1 - b_1) g_t)
            + \lambda w_{t-1}), \quad
        m_t = b_2 m_{t-1} + (1 - b_2) g_t

    Attributes:
        b1: Weight of the momentum in the update's sign.
        b2: Decay of the momentum.
        weight_decay: ``lambda``, the share of each weight that a step removes, times
            the rate.

    Examples:
        >>> from capsjax.config import Config, Lion
        >>> config = Config(optimizer=Lion(learning_rate=1e-4))
        >>> config.optimizer.weight_decay
        0.001

    References:
        Chen et al. 2023, *Symbolic Discovery of Optimization Algorithms*,
        https://arxiv.org/abs/2302.06675.
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
    r"""Stochastic gradient descent, with a momentum.

    .. math::
        m_t = \mu m_{t-1} + g_t, \quad
        w_t = w_{t-1} - r_t m_t

    Attributes:
        momentum: ``mu``, the decay of the momentum; 0 for none.
        nesterov: True for a momentum that looks one step ahead: ``g_t + mu m_t`` in
            place of ``m_t`` in the second equation.

    Examples:
        >>> from capsjax.config import SGD, Config
        >>> config = Config(optimizer=SGD(learning_rate=0.1, nesterov=True))
        >>> config.optimizer.momentum
        0.9
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
