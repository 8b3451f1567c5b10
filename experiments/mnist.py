"""CapsNet on MNIST (Sabour, Frosst and Hinton 2017, section 5).

    python -m capsjax.train --config experiments/mnist.py

trains the paper's network for 12 epochs: cosine schedule from 0.003, Adam's b2 = 0.99.
Variants, ``experiments/mnist.py:NAME``, are frozen recipes:

notebook  Geron's ``extra_capsnets.ipynb``: 2 rounds, ReLU before the primary squash,
          mean squared error, batches of 50, no shifts.
paper     The paper's text: 3 rounds, summed squared error, shifts of up to 2 pixels.
          First weights (not in the text) as above, decay of the rate as in their code.
authors   Their released code: margin loss / 20, primary capsules / 32, all biases 0.1,
          truncated normals. They trained 640 epochs; this recipe trains 10.
one_round, no_reconstruction, one_round_no_reconstruction
          ``paper`` with 1 round of routing, without reconstruction, or both.
cnn       The paper's baseline of 35.4 million parameters, Adam at 0.001, cosine.
smoke     A narrow network and a fifth of the images: half a minute on two cores.

Results: docs/results.md
"""

from capsjax.config import (
    Config,
    Data,
    Initializers,
    Loss,
    Model,
    Optimizer,
    make_smoke,
    require_variant,
)

# The rows of the paper's table 1: rounds of routing, and whether it draws.
TABLE_1 = ("one_round_no_reconstruction", "one_round", "no_reconstruction", "paper")
VARIANTS = ("", "notebook", *TABLE_1, "authors", "cnn", "smoke")


def get_config(variant: str = "") -> Config:
    """The recipe of that name; the plain one without a name."""
    require_variant(variant, VARIANTS, "mnist")
    config = Config(experiment="mnist", variant=variant)
    if variant == "":
        config.num_epochs = 12
        config.optimizer = Optimizer(learning_rate=0.003, b2=0.99)
    if variant == "notebook":
        glorot = "glorot_uniform"
        config.batch_size = 50
        config.data = Data(max_shift=0)
        config.model = Model(
            num_iterations=2,
            primary_relu=True,
            initializers=Initializers(
                conv=glorot,
                primary=glorot,
                weight="normal(0.1)",
                decoder=glorot,
                reconstruction=glorot,
                bias="zeros",
            ),
        )
        config.loss = Loss(reconstruction_reduction="mean")
        config.optimizer = Optimizer(schedule="constant")
    if variant in TABLE_1:
        config.model = Model(
            initializers=Initializers(
                conv="normal(0.064)",
                primary="normal(0.0098)",
                weight="normal(0.02)",
                decoder="he_normal",
                reconstruction="lecun_normal",
                bias="zeros",
            )
        )
        config.optimizer = Optimizer(schedule="exponential", floor=0.0)
    if variant.startswith("one_round"):
        config.model.num_iterations = 1
    if variant.endswith("no_reconstruction"):
        config.loss.reconstruction_weight = 0.0
    if variant == "cnn":
        config.model.name = "cnn"
    if variant == "authors":
        tenth = "truncated_normal(0.1)"
        config.model = Model(
            primary_scale=1 / 32,
            routing_bias=True,
            initializers=Initializers(
                conv="truncated_normal(0.05)",
                primary=tenth,
                weight=tenth,
                decoder=tenth,
                reconstruction=tenth,
                bias="constant(0.1)",
            ),
        )
        config.loss = Loss(margin_weight=1 / 20)
        config.optimizer = Optimizer(schedule="exponential", floor=1e-6)
    if variant == "smoke":
        make_smoke(config)
    return config
