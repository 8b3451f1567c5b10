"""Makes a run of weights that were trained in somebody's own loop."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from capsjax import config as configs
from capsjax.data.preparation import Preparation
from capsjax.models.network import UNKNOWN_SHAPE, require_bound
from capsjax.models.variables import require_variables
from capsjax.runtime.paths import exists
from capsjax.storage.checkpoints import Checkpoints
from capsjax.storage.files import WorkdirError, write_json
from capsjax.storage.run import Run, evaluated_name, load_run
from capsjax.storage.workdir import Workdir

# Name of a data set that only the maker of the weights knows.
UNKNOWN_DATA = "unknown"


def save_run(
    path: str | os.PathLike[str],
    model: Any,
    params: Any,
    *,
    class_names: Sequence[str] | None = None,
    preparation: Preparation | None = None,
    config: configs.Config | None = None,
) -> Run:
    """Makes a run of weights trained in your own loop, to evaluate and predict with.

    ``config.init_from`` starts a training from it. The run can't be resumed, as it has
    no state of an optimizer.

    Args:
        path: The folder of the run, which must not hold one.
        model: The network: a Flax Linen module with ``encode``, and with values in its
            fields ``image_shape`` and ``num_classes``. See docs/networks.md.
        params: Its variables, as ``model.init(key, image, method="encode")`` returns
            them; with those of ``decode``, if the network draws.
        class_names: Names of the classes; by default their numbers.
        preparation: How a picture becomes an image of that shape; by default it is
            scaled at most.
        config: A config whose loss and data set the run keeps.

    Raises:
        ValueError: If the network lacks a field or ``encode``, or the variables or the
            names do not fit it.
        WorkdirError: If the folder holds a run, or can't be written.

    Examples:
        >>> import tempfile
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from capsjax import CapsNet, load_run, save_run
        >>> network = CapsNet((28, 28, 1), 10, conv_features=16, primary_types=2)
        >>> params = network.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = save_run(f"{folder}/run", network, params)
        ...     load_run(f"{folder}/run").model.num_classes
        10
    """
    # Check network, variables and names; nothing is written yet.
    require_bound(model)
    require_variables(model, params)
    names = [str(n) for n in range(model.num_classes)]
    if class_names is not None:
        names = [*map(str, class_names)]
    if len(names) != model.num_classes:
        raise ValueError(
            f"class_names has {len(names)} names, and the network "
            f"{model.num_classes} classes."
        )
    config = config or configs.Config(data=configs.Data(name=UNKNOWN_DATA))
    if config.data.crop:
        raise ValueError("config.data.crop must be 0: images are of model.image_shape.")
    unbound = model.clone(image_shape=UNKNOWN_SHAPE, num_classes=0)
    config = dataclasses.replace(config, model=unbound)
    configs.validate(config)
    preparation = preparation or Preparation("as_is", *model.image_shape)
    about = {
        "name": config.data.name,
        "image_shape": model.image_shape,
        "class_names": names,
        "num_shown": 1,
        "preparation": preparation.to_json(),
        "in_memory": True,
        "splits": {},
    }
    if preparation.image_shape != model.image_shape:
        raise ValueError(
            f"the preparation makes images of {preparation.image_shape}, and the "
            f"network is for {model.image_shape}."
        )
    # Write the configuration last: it makes the folder a run.
    workdir = Workdir(path)
    with workdir.locked():
        if exists(workdir.config) or workdir.has_saved:
            raise WorkdirError(f"{workdir.path} holds a run; choose another folder.")
        checkpoints: Checkpoints[Any] = Checkpoints(workdir.checkpoints)
        try:
            checkpoints.save(0, {evaluated_name(config): params})
            checkpoints.wait()
        finally:
            checkpoints.close()
        write_json(workdir.dataset, about)
        write_json(workdir.config, configs.to_dict(config))
    return load_run(path, config=config)
