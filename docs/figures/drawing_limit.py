"""Measures the drawing limit of a run on its validation images.

    python docs/figures/drawing_limit.py capsjax/pretrained/mnist

Writes it into the run's result.json, as a training does: for runs from before. The
card that `python -m capsjax.export --format safetensors` writes has it, too.
"""

import sys

from capsjax.runtime.devices import parallel
from capsjax.storage.files import write_json
from capsjax.storage.run import load_run
from capsjax.training.evaluation import drawing_limit, evaluate, make_eval_step
from capsjax.training.sets import make_sets


def measure(run):
    """Returns the limit of the network that ``load_run`` opens."""
    _, validation_set, _ = make_sets(run.config, run.workdir.split_rule(), None)
    if problem := run.workdir.other_images({"validation": validation_set}):
        raise SystemExit(f"{run.workdir.path} {problem}")
    errors = []
    evaluate(
        parallel(make_eval_step(run.model, run.loss)),
        run.params,
        validation_set,
        batch_size=run.config.eval_batch_size,
        errors=errors,
    )
    return drawing_limit(errors)


def main():
    for path in sys.argv[1:]:
        run = load_run(path)
        limit = measure(run)
        for split in ("validation", "validation_of_last"):
            if run.result[split]["step"] == run.step:
                run.result[split]["drawing_limit"] = limit
        write_json(run.workdir.result, run.result)
        print(f"{path}: {limit}")


if __name__ == "__main__":
    main()
