"""A run that is on disk, opened to use what it learnt.

run = capsjax.load_run("runs/mnist-seed0")
run.predict(images).label
"""

import functools
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Shaped

from capsjax.data.augment import crop_middle, cropped_shape, scale_to_unit
from capsjax.data.preparation import LARGEST_SIDE, Preparation, first_edition
from capsjax.models import CapsNet, Network, make_model, prepare
from capsjax.storage.checkpoints import Checkpoints
from capsjax.storage.files import WorkdirError
from capsjax.storage.workdir import Workdir


class Prediction(NamedTuple):
    """What a network sees in some images.

    Attributes:
        label: The longest class capsule of each image, an index into ``class_names``.
        length: The length of every class capsule, from 0 to 1; of the baseline, which
            has none, every class's probability.
        pose: The poses of the class capsules; None of the baseline.
    """

    label: Int[np.ndarray, " n"]
    length: Float[np.ndarray, "n classes"]
    pose: Float[np.ndarray, "n classes d"] | None


class Run:
    """The network of a run, ready to be used; made by :func:`load_run`.

    It can be pickled, weights included, and predicts the same in another process.

    Attributes:
        workdir: Its folder.
        config: How it was trained.
        class_names: What its class capsules stand for.
        image_shape: Height, width and channels of the images that it was trained on, of
            which the network may see a part only.
        num_shown: How many classes each image shows; None where that differs.
        preparation: How a picture becomes such an image.
        model: The network.
        params: Its weights, or their moving average where the recipe evaluates that.
        step: The optimizer steps after which these were the weights.
    """

    def __init__(self, workdir: Workdir):
        self.workdir, self.config = workdir, workdir.read_config()
        about = workdir.read_json(workdir.dataset)
        try:
            self.class_names = _names(about["class_names"])
            height, width, channels = map(_side, about["image_shape"])
            self.num_shown = _count(about.get("num_shown", 1))
            self.image_shape = (height, width, channels)
            self.preparation = _preparation(
                about.get("preparation"), self.config.data.name, self.image_shape
            )
        except (KeyError, TypeError, ValueError) as error:
            raise WorkdirError(f"{workdir.dataset} is damaged: {error!r}.") from error
        try:
            self.model = self._make_model()
            image = jax.ShapeDtypeStruct((1, *self.model.image_shape), jnp.float32)
            params = jax.eval_shape(self.model.init, jax.random.key(0), image)
        except ValueError as error:
            raise WorkdirError(f"{workdir.path}: {error}") from error
        self.step, self.params = self._restored(params)
        self._encoders: dict[int, Any] = {}  # by batch size

    def _make_model(self) -> Network:
        shape = cropped_shape(self.image_shape, self.config.data.crop)
        return make_model(self.config.model, shape, len(self.class_names))

    def __getstate__(self) -> dict[str, Any]:
        """The run as it is pickled: weights on the host, nothing that is compiled."""
        params = jax.tree.map(np.asarray, self.params)
        compiled = ("model", "_encoders", "_decode")
        state = {**self.__dict__, "params": params}
        return {name: value for name, value in state.items() if name not in compiled}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.params = jax.device_put(self.params, jax.local_devices()[0])
        self.model, self._encoders = self._make_model(), {}

    def _restored(self, shapes: Any) -> tuple[int, Any]:
        nothing = WorkdirError(
            f"{self.workdir.path} has no checkpoint yet: train it for an epoch first."
        )
        if not self.workdir.checkpoints.is_dir():
            raise nothing
        checkpoints: Checkpoints[Any] = Checkpoints(
            self.workdir.checkpoints, read_only=True
        )
        try:
            device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            params = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(
                    leaf.shape, leaf.dtype, sharding=device
                ),
                shapes,
            )
            name = "average" if self.config.optimizer.average else "params"
            restore = checkpoints.restore_best
            if self.config.stop_at:  # It is the last that was as good as asked for.
                restore = checkpoints.restore_latest
            restored = restore({name: params}, partly=True)
            if restored is None:
                raise nothing
            return restored[0], restored[1][name]
        finally:
            checkpoints.close()

    def predict(self, image: Shaped[Any, "..."]) -> Prediction:
        """Classifies images.

        What can be done once, transforming the weights and compiling, is done at the
        first call with so many images; then it answers batch after batch.

        Args:
            image: One image ``[h, w, c]`` or several ``[n, h, w, c]`` of
                ``image_shape``, uint8 from 0 to 255. Where the network was trained on
                crops, it sees the middle of them.

        Raises:
            ValueError: If the images are of another shape.
            TypeError: If they are not uint8.
        """
        image = np.asarray(image)
        if image.ndim not in (3, 4) or image.shape[-3:] != self.image_shape:
            raise ValueError(
                f"images must be of shape {self.image_shape}, one or [n, ...]; got an "
                f"array of shape {image.shape}."
            )
        if image.dtype != np.uint8:
            raise TypeError(f"images must be uint8, from 0 to 255; got {image.dtype}.")
        shape = self.model.image_shape
        image = crop_middle(image.reshape(-1, *self.image_shape), shape)
        # Of few sizes, for each of which something is compiled; the last is filled up.
        size = min(_next_power_of_two(len(image)), self.config.eval_batch_size)
        if size not in self._encoders:
            self._encoders[size] = prepare(self.model, self.params, batch_size=size)
        num_classes, pose = len(self.class_names), None
        if isinstance(self.model, CapsNet):
            pose = np.empty((len(image), num_classes, self.model.class_dim), np.float32)
        length = np.empty((len(image), num_classes), np.float32)
        for start in range(0, len(image), size):
            part = slice(start, start + size)
            batch = image[part]
            filled = np.zeros((size, *shape), np.uint8)
            filled[: len(batch)] = batch
            seen = self._encoders[size](scale_to_unit(filled))
            if pose is None:
                length[part] = np.exp(seen[: len(batch)])
            else:
                pose[part] = seen.pose[: len(batch)]
                length[part] = seen.activation[: len(batch)]
        return Prediction(length.argmax(-1), length, pose)

    def draw(
        self, pose: Float[Any, "n classes d"], label: Int[Any, " n"]
    ) -> Float[np.ndarray, "n h w c"]:
        """The images that the labels' capsules stand for, with pixels from 0 to 1.

        They are as large as what the network sees.

        Raises:
            ValueError: If the network is the baseline, which draws nothing.
        """
        if not isinstance(self.model, CapsNet):
            raise ValueError(f"{self.workdir.path} is a baseline: it draws nothing.")
        if not len(pose):
            return np.zeros((0, *self.model.image_shape), np.float32)
        mask = jax.nn.one_hot(label, len(self.class_names), dtype=jnp.float32)
        return np.asarray(self._decode(self.params, pose, mask))

    @functools.cached_property
    def _decode(self) -> Any:
        model: Any = self.model
        return jax.jit(functools.partial(model.apply, method=model.decode))


def load_run(path: str | os.PathLike[str]) -> Run:
    """Opens the best network of a run: by validation loss, or else the last.

    Of a run that was to stop at an accuracy (``stop_at``) it is the last. A run that
    is still training can be opened too.

    Args:
        path: The run's folder, the ``--workdir`` of the training.

    Raises:
        WorkdirError: If it holds no run, or none that has saved anything.
        CheckpointError: If the checkpoint can't be read.
    """
    return Run(Workdir(path))


def _next_power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _names(value: Any) -> tuple[str, ...]:
    if type(value) is not list or not value or {type(name) for name in value} != {str}:
        raise ValueError(f"class_names is {value!r}")
    return tuple(value)


def _preparation(
    value: Any, name: str, image_shape: tuple[int, int, int]
) -> Preparation:
    if value is None:
        return first_edition(name, image_shape)
    preparation = Preparation.from_json(value)
    if preparation.image_shape != image_shape:
        raise ValueError(f"the preparation makes images of {preparation.image_shape}")
    return preparation


def _side(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= LARGEST_SIDE:
        raise ValueError(f"image_shape has {value!r}")
    return value


def _count(value: Any) -> int | None:
    if value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"num_shown is {value!r}")
    return value
