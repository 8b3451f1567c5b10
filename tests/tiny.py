"""A network of seconds, on MNIST."""

import jax

from capsjax import config as configs
from capsjax.models import make_model
from capsjax.step import init_state, make_optimizer


def tiny_model(**options) -> configs.Model:
    """The configuration of 30,784 parameters."""
    return configs.Model(
        conv_features=8,
        primary_types=2,
        primary_stride=4,
        class_dim=4,
        decoder_features=(16,),
        **options,
    )


def tiny(**options):
    """A run of seconds: two epochs of five steps, in chunks of three and of one."""
    config = configs.Config(num_epochs=2, batch_size=8, steps_per_dispatch=3, **options)
    config.data = configs.Data(num_train=40, num_validation=50)
    config.model = tiny_model()
    config.optimizer.learning_rate = 3e-3
    return config


def made(config):
    model = make_model(config.model, (28, 28, 1), 10)
    optimizer = make_optimizer(config.optimizer, 10)
    state = jax.jit(lambda: init_state(model, optimizer, config))()
    return model, optimizer, state
