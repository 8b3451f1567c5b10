"""Opens the network of a run on disk.

run = capsjax.load_run("runs/mnist-seed0")
run.predict(images).label
"""

import contextlib
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped, UInt8

from capsjax import config as configs
from capsjax.data.augment import scale_to_unit
from capsjax.data.crop import crop_middle, cropped_shape
from capsjax.data.preparation import LARGEST_SIDE, Preparation, first_edition
from capsjax.losses import (
    ActivationKind,
    Loss,
    fitting_loss,
    unexplained_variance,
)
from capsjax.models import Network, prepare
from capsjax.models.network import (
    activation_kind,
    bind,
    can_draw,
    has_stages,
    init_variables,
)
from capsjax.storage.checkpoints import Checkpoints
from capsjax.storage.files import WorkdirError
from capsjax.storage.prediction import Features, Prediction
from capsjax.storage.weights import read_variables
from capsjax.storage.workdir import Workdir


class Run:
    """The trained network of a run, opened by :func:`capsjax.load_run`.

    It can be pickled with its weights, and predicts the same in another process.

    Attributes:
        workdir: The run's folder.
        config: The config of the training.
        class_names: Names of the classes, in the order of the class capsules.
        image_shape: Height, width and channels of the training images. The network may
            see crops of them.
        num_shown: Number of classes in each image; None if it differs between images.
        in_memory: True if its images were arrays of a Python program.
        preparation: The preparation that turns a picture into an image of that shape.
        model: The network.
        activation_kind: ``length``, ``probability``, or ``logit``, for which
            predictions hold the softmax, or the sigmoid if images show several classes.
        params: The network's variables, or their moving average if the recipe evaluates
            it.
        step: Optimizer steps done with these weights.
        result: The content of ``result.json``; None from a run that has not ended, or
            if the file is damaged.

    Examples:
        >>> import numpy as np
        >>> from capsjax import load_pretrained
        >>> run = load_pretrained("mnist")
        >>> run.image_shape, run.activation_kind
        ((28, 28, 1), 'length')
        >>> run.draw(np.zeros((2, 16)), np.array([3, 7])).shape
        (2, 28, 28, 1)
    """

    def __init__(self, workdir: Workdir, own: configs.Config | None = None):
        self.workdir, self.config = workdir, workdir.read_config(own)
        about = workdir.read_json(workdir.dataset)
        try:
            self.class_names = _names(about["class_names"])
            height, width, channels = map(_side, about["image_shape"])
            self.num_shown = _count(about.get("num_shown", 1))
            self.in_memory = about.get("in_memory") is True
            self.image_shape = (height, width, channels)
            self.preparation = _preparation(
                about.get("preparation"), self.config.data.name, self.image_shape
            )
        except (KeyError, TypeError, ValueError) as error:
            raise WorkdirError(f"{workdir.dataset} is damaged: {error!r}.") from error
        try:
            self.model = self._make_model()
            params = jax.eval_shape(
                lambda: init_variables(self.model, jax.random.key(0))
            )
        except ValueError as error:
            raise WorkdirError(f"{workdir.path}: {error}") from error
        self.step, self.params = self._restored(params)
        self.result: dict[str, Any] | None = None
        with contextlib.suppress(WorkdirError, TypeError, KeyError):
            self.result = _result(workdir.read_json(workdir.result))
        self._encoders: dict[int, Any] = {}  # by batch size

    def __repr__(self) -> str:
        """Names the folder, the network and the step."""
        network = type(self.model).__name__
        return f"Run({str(self.workdir.path)!r}, {network}, step {self.step})"

    def _make_model(self) -> Network:
        shape = cropped_shape(self.image_shape, self.config.data.crop)
        return bind(self.config.model, shape, len(self.class_names))

    @property
    def activation_kind(self) -> ActivationKind:
        """Kind of the network's activations."""
        return activation_kind(self.model)

    @property
    def loss(self) -> Loss:
        """Loss that fits the network, with the margins of the recipe."""
        return fitting_loss(self.config.loss, self.activation_kind)

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state to pickle: weights on the host, without programs."""
        params = jax.tree.map(np.asarray, self.params)
        compiled = ("model", "_encoders", "_inside", "_decode")
        state = {**self.__dict__, "params": params}
        return {name: value for name, value in state.items() if name not in compiled}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.params = jax.device_put(self.params, jax.local_devices()[0])
        self.model, self._encoders = self._make_model(), {}

    def _restored(self, shapes: Any) -> tuple[int, Any]:
        if self.workdir.is_shared:
            step, variables = read_variables(self.workdir.weights, self.model)
            return step, jax.device_put(variables, jax.local_devices()[0])
        nothing = WorkdirError(
            f"{self.workdir.path} has no checkpoint yet: train it for an epoch first."
        )
        if not self.workdir.checkpoints.is_dir():
            for other in self.workdir.path.glob("*.safetensors"):
                name = self.workdir.weights.name
                raise WorkdirError(f"{other} must be called {name} to be opened.")
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
            name = evaluated_name(self.config)
            restore = checkpoints.restore_best
            if self.config.stop_at:  # The last network reached that accuracy.
                restore = checkpoints.restore_latest
            restored = restore({name: params}, partly=True)
            if restored is None:
                raise nothing
            return restored[0], restored[1][name]
        finally:
            checkpoints.close()

    def predict(self, image: Shaped[Any, "..."]) -> Prediction:
        """Classifies images.

        The first call with a given batch size transforms the weights and compiles;
        later calls reuse both.

        Args:
            image: One image ``[h, w, c]`` or several ``[n, h, w, c]`` of
                ``image_shape``, uint8 from 0 to 255. Grey images may lack the last
                axis. A network trained on crops sees
                the middle of them.

        Returns:
            The prediction: ``label``, the most active class of each image; ``present``,
            all of its classes, where images show several or none; ``activation`` and
            ``pose`` of every class.

        Raises:
            ValueError: If the images have another shape.
            TypeError: If they are not uint8.
        """
        image = self._seen(image)
        # Compile for few batch sizes.
        size = min(_next_power_of_two(len(image)), self.config.eval_batch_size)
        if size not in self._encoders:
            self._encoders[size] = prepare(self.model, self.params, batch_size=size)
        encode = self._encoders[size]
        routed = _in_batches(
            lambda image: encode(image)._replace(coupling=None), image, size
        )
        activation = routed.activation
        if self.activation_kind == "logit":
            squash = jax.nn.softmax if self.num_shown == 1 else jax.nn.sigmoid
            activation = np.asarray(squash(activation))
        return Prediction(activation.argmax(-1), activation, routed.pose)

    @property
    def drawing_limit(self) -> float | None:
        """Largest ``drawing_error`` of an image that shows one of the classes.

        It is the 99.9 % quantile of the recognised validation images. None from a run
        with fewer than 500 of them, one whose images show several classes or whose
        network draws nothing, one that has not ended, and an older one.
        """
        for split in ("validation", "validation_of_last"):
            measured = (self.result or {}).get(split)
            if not isinstance(measured, dict) or measured.get("step") != self.step:
                continue
            limit = measured.get("drawing_limit")
            if isinstance(limit, float) and limit > 0 and can_draw(self.model):
                return limit
        return None

    def drawing_error(
        self, image: Shaped[Any, "..."], prediction: Prediction
    ) -> Float[np.ndarray, " n"]:
        """Compares images with what their present capsules draw.

        Args:
            image: One image or several, as for ``predict``.
            prediction: Their prediction.

        Returns:
            The share of each image's variance that the brightest pixels of the drawings
            of its capsules of at least 0.5, or of the longest, leave unexplained.

        Raises:
            ValueError: If the network draws nothing, or images have another shape.
            TypeError: If the images are not uint8.
        """
        seen = np.float32(scale_to_unit(self._seen(image)))
        count = np.maximum(1, prediction.present.sum(-1))
        order = np.argsort(-prediction.activation, axis=-1, kind="stable")
        drawing = np.zeros_like(seen)
        # One by one: a decoder learns to draw from one capsule.
        for rank in range(count.max(initial=0)):
            drawn = self.draw(prediction.pose, order[:, rank])
            is_drawn = (rank < count)[:, None, None, None]
            drawing = np.maximum(drawing, np.where(is_drawn, drawn, 0))
        return np.asarray(unexplained_variance(drawing, seen))

    def present(self, image: Shaped[Any, "..."]) -> Bool[np.ndarray, "n classes"]:
        """Decides which classes images show: none of them, one or several.

        A class is there if its activation is at least 0.5. If the run has a
        ``drawing_limit``, an image whose ``drawing_error`` exceeds it shows none: the
        capsules are long, and draw something else.

        Args:
            image: One image or several, as for ``predict``.

        Raises:
            ValueError: If the images have another shape.
            TypeError: If they are not uint8.
        """
        prediction = self.predict(image)
        if self.drawing_limit is None:
            return prediction.present
        error = self.drawing_error(image, prediction)
        return prediction.present & (error <= self.drawing_limit)[:, None]

    def explore(self) -> Any:
        """Makes the page that looks inside the network; a notebook shows it in a cell.

        Its ``write(path)`` writes the page to a file.

        Raises:
            ExplorerError: If the page can't show the network.
        """
        # A method of this class, as people look for it here: the one arrow upwards.
        from capsjax.explorer.page import make_page

        return make_page(self)

    def features(self, image: Shaped[Any, "..."]) -> Features:
        """Computes the primary capsules and the poses of the class capsules of images.

        Args:
            image: One image or several, as for ``predict``.

        Raises:
            ValueError: If the images have another shape.
            TypeError: If they are not uint8.
        """
        image = self._seen(image)
        size = min(_next_power_of_two(len(image)), self.config.eval_batch_size)
        return _in_batches(functools.partial(self._inside, self.params), image, size)

    @functools.cached_property
    def _inside(self) -> Any:
        model = self.model

        def features(module: Any, image: Array) -> Features:
            if not has_stages(model):
                routed = module.encode(image)
                return Features(None, routed.pose, routed.activation)
            primary = module.primary(image)
            routed = module.route(primary)
            shape = (len(image), -1, primary.shape[-1])
            return Features(primary.reshape(shape), routed.pose, routed.activation)

        return jax.jit(functools.partial(model.apply, method=features))

    def _seen(self, image: Any) -> UInt8[np.ndarray, "n h w c"]:
        """Checks images, and returns the middle that the network sees."""
        image = np.asarray(image)
        if self.image_shape[-1] == 1 and image.shape[-2:] == self.image_shape[:2]:
            image = image[..., None]  # Grey images without an axis for the colours.
        if image.ndim not in (3, 4) or image.shape[-3:] != self.image_shape:
            raise ValueError(
                f"images must be of shape {self.image_shape}, one or [n, ...]; got an "
                f"array of shape {image.shape}."
            )
        if image.dtype != np.uint8:
            raise TypeError(f"images must be uint8, from 0 to 255; got {image.dtype}.")
        image = image.reshape(-1, *self.image_shape)
        return np.asarray(crop_middle(image, self.model.image_shape))

    def draw(
        self, pose: Shaped[Any, "..."], label: Shaped[Any, "..."]
    ) -> Float[np.ndarray, "n h w c"]:
        """Draws images from the labels' capsules, with pixels from 0 to 1.

        Args:
            pose: The poses of all class capsules, ``[n, classes, d]``, or of the
                labels' capsules alone, ``[n, d]``.
            label: The capsule to draw from, for each image: integers ``[n]``.

        Returns:
            Images of the size that the network sees.

        Raises:
            ValueError: If the network draws nothing, or poses or labels do not fit it.
        """
        if not can_draw(self.model):
            raise ValueError(
                f"the network of {self.workdir.path} draws nothing: "
                f"{type(self.model).__name__} has no decoder."
            )
        pose, label = np.asarray(pose), np.asarray(label)
        classes, d = self._pose_shape
        if pose.shape[1:] not in ((classes, d), (d,)):
            raise ValueError(
                f"pose must be [n, {classes}, {d}], or [n, {d}] of the labels' "
                f"capsules; got shape {pose.shape}."
            )
        if not len(pose):
            return np.zeros((0, *self.model.image_shape), np.float32)
        if label.shape != pose.shape[:1] or not np.issubdtype(label.dtype, np.integer):
            raise ValueError(
                f"label must be {len(pose)} integers, one for each pose; got "
                f"{label.dtype} of shape {label.shape}."
            )
        if (outside := label[(label < 0) | (label >= classes)]).size:
            raise ValueError(
                f"label must be from 0 to {classes - 1}; got {outside[0]}."
            )
        if pose.ndim == 2:  # The mask lets through no other capsule's.
            pose = np.broadcast_to(pose[:, None], (len(pose), classes, d))
        mask = jax.nn.one_hot(label, classes, dtype=jnp.float32)
        return np.asarray(self._decode(self.params, pose, mask))

    @functools.cached_property
    def _pose_shape(self) -> tuple[int, ...]:
        """Number of class capsules, and of the components of each."""
        image = jnp.zeros((1, *self.model.image_shape), jnp.float32)
        encode = functools.partial(self.model.apply, method=self.model.encode)
        return jax.eval_shape(encode, self.params, image).pose.shape[1:]

    @functools.cached_property
    def _decode(self) -> Any:
        assert can_draw(self.model)
        return jax.jit(functools.partial(self.model.apply, method=self.model.decode))


def load_run(
    path: str | os.PathLike[str], *, config: configs.Config | None = None
) -> Run:
    """Opens the best network of a run by validation loss, or the last without one.

    Opens the last network if the config sets ``stop_at``. Opens a run that is still
    training, too, and a folder that ``capsjax.export`` wrote, with the file
    ``weights.safetensors`` in place of checkpoints. Nothing in that file is executed.

    Args:
        path: The run's folder, the ``--workdir`` of the training.
        config: The config of the run's experiment file, if it has classes of its own.

    Raises:
        WorkdirError: If the folder holds no run, the run has saved nothing, or the file
            of weights is damaged or of another network.
        CheckpointError: If the checkpoint can't be read.

    Examples:
        >>> import capsjax
        >>> from capsjax.storage.pretrained import DIGITS
        >>> run = capsjax.load_run(DIGITS)
        >>> run.class_names[:3]
        ('0', '1', '2')
    """
    return Run(Workdir(path), config)


def evaluated_name(config: configs.Config) -> str:
    """Name of the variables in a checkpoint that are evaluated."""
    return "average" if config.optimizer.average else "params"


def _in_batches(
    function: Callable[..., Any], image: UInt8[np.ndarray, "n h w c"], size: int
) -> Any:
    """Computes arrays for all images, batch by batch; the last batch is filled up."""
    parts = []
    # Once without images, too: the shapes come from the network.
    for start in range(0, max(1, len(image)), size):
        batch = image[start : start + size]
        filled = np.zeros((size, *image.shape[1:]), np.uint8)
        filled[: len(batch)] = batch
        parts.append(jax.tree.map(np.asarray, function(scale_to_unit(filled))))
    return jax.tree.map(lambda *a: np.concatenate(a)[: len(image)], *parts)


def _next_power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _names(value: Any) -> tuple[str, ...]:
    if type(value) is not list or not value or {type(name) for name in value} != {str}:
        raise ValueError(f"class_names is {value!r}")
    return tuple(value)


def _result(value: Any) -> dict[str, Any]:
    """Returns a ``result.json`` whose measurements are numbers.

    Raises:
        KeyError: If a measurement lacks a number.
        TypeError: If it is another value.
    """
    if not isinstance(value, dict):
        raise TypeError(f"a result is {value!r}")
    for split in ("test", "validation"):
        measured = value.get(split)
        if measured is not None:
            numbers = measured["accuracy"], measured["loss"]
            if any(type(number) not in (int, float) for number in numbers):
                raise TypeError(f"{split} is {measured!r}")
    return value


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
