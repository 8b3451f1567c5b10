"""A network of seconds, on MNIST."""

from capsjax import config as configs


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
