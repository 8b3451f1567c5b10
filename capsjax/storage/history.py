"""The settings of each part of a run, in ``history.json``.

A run may resume with other values of some fields. The file is a list with one object
for each stage: ``step``, the optimizer steps done when it began, and the value of every
field of ``config.RECORDED`` from there on. A run without a change has one stage. The
first stage of a run with ``config.init_from`` names the weights that it took.
"""

import json
import operator
from typing import Any

from capsjax import config as configs
from capsjax.storage.files import WorkdirError, write_json
from capsjax.storage.workdir import Workdir

Stage = dict[str, Any]


def record(
    workdir: Workdir, config: configs.Config, step: int, begun: Stage | None = None
) -> list[Stage]:
    """Adds a stage if a run resumes with new settings; call it before ``config.json``.

    Args:
        workdir: The run's folder.
        config: The config of the new start.
        step: Optimizer steps done in the checkpoint that it resumes from: later steps
            do not count.
        begun: More to keep of the first stage, such as the weights it starts from.

    Returns:
        All stages of the run.

    Raises:
        WorkdirError: If the file can't be written.
    """
    now = _settings(config)
    stages = [stage for stage in read(workdir) if stage["step"] < step]
    if not stages or any(
        stages[-1].get(name, value) != value for name, value in now.items()
    ):
        first = {} if stages else begun or {}
        stages.append({"step": step if stages else 0, **now, **first})
    write_json(workdir.history, stages)
    return stages


def read(workdir: Workdir) -> list[Stage]:
    """Returns the stages of a run, from the first; none if there is no run.

    If ``history.json`` can't be read, as in older runs, the stages are rebuilt from the
    numbers of epochs in ``config.json`` and ``result.json``.
    """
    try:
        stages = workdir.read_json(workdir.history)
        steps = [stage["step"] for stage in stages]
        if steps[0] == 0 and {type(step) for step in steps} == {int}:
            return stages
    except (WorkdirError, KeyError, TypeError, IndexError):
        pass
    return _rebuilt(workdir)


def _rebuilt(workdir: Workdir) -> list[Stage]:
    try:
        now = _settings(workdir.read_config())
    except WorkdirError:
        return []
    ends: list[tuple[int, int]] = []
    try:
        result = workdir.read_json(workdir.result)
        for one in (*result["tested_before"], result):
            ends.append((int(one["num_epochs"]), int(one["test_of_last"]["step"])))
    except (WorkdirError, KeyError, TypeError, ValueError):
        pass  # The run has not ended, or the file is damaged.
    starts = [0, *(step for _, step in ends)]
    epochs = [*(number for number, _ in ends), now["num_epochs"]]
    stages: list[Stage] = []
    for step, number in zip(starts, epochs, strict=True):
        if not stages or stages[-1]["num_epochs"] != number:
            stages.append({"step": step, **now, "num_epochs": number})
    return stages


def _settings(config: configs.Config) -> dict[str, Any]:
    settings = {name: operator.attrgetter(name)(config) for name in configs.RECORDED}
    return json.loads(json.dumps(settings))  # Lists for tuples, like in the file.
