"""The card of a trained network: what it is, how well it does, how to open it."""

import json
from collections.abc import Iterator

from capsjax import config as configs
from capsjax.models.network import num_parameters
from capsjax.models.variables import named
from capsjax.runtime.console import printable
from capsjax.storage.run import Run

_MOST_NAMES = 20  # Classes that are listed by name.
_NOT_NAMED = "The author of these weights has not named a licence here."


def card(run: Run, *, half: bool, licence: str, note: str) -> str:
    """Returns the text of the ``README.md`` beside the weights of a run.

    Args:
        run: The run.
        half: True if the weights beside it are rounded to float16.
        licence: Licence of the weights; empty if it is not known.
        note: One more paragraph; empty for none.
    """
    network, data = type(run.model).__name__, printable(run.config.data.name)
    names = [printable(name) for name in run.class_names[:_MOST_NAMES]]
    if len(run.class_names) > _MOST_NAMES:
        names.append("...")
    parts = [
        f"# {network} for {data}",
        f"A network for capsjax, of {num_parameters(run.params['params']):,} "
        f"parameters. Its {len(run.class_names)} classes are {', '.join(names)}.",
        "\n".join(["| | |", "| --- | --- |", *_rows(run, half=half)]),
        note,
        "## Open it",
        f"```bash\n{_commands(run)}\n```",
        f"```python\n{_program(run)}\n```",
        "## Images",
        _images(run),
        "## Files",
        "`weights.safetensors` holds arrays by name, and no code. `config.json` has "
        "the network and its training, `dataset.json` the classes and the images, "
        "`result.json` the measurements and the versions of the programs.",
        "## Licence",
        licence or _NOT_NAMED,
    ]
    text = "\n\n".join(filter(None, parts)) + "\n"
    return "\n".join(map(printable, text.split("\n")))


def _rows(run: Run, *, half: bool) -> Iterator[str]:
    """Yields the rows of the table: training, measurements, type of the weights."""
    config, result = run.config, run.result or {}
    recipe = ":".join(filter(None, (config.experiment, config.variant)))
    origin = f"{recipe or 'no name'}, seed {config.seed}, step {run.step}"
    if run.workdir.is_untrained:
        origin = "its author's own loop"
    yield f"| recipe | {origin} |"
    yield f"| settings | {', '.join(_settings(config))} |"
    yield f"| commit | {result.get('commit') or 'not known'} |"
    for split in ("test", "validation"):
        measured = result.get(split)
        text = "not measured"
        if measured is not None:
            text = f"{measured['accuracy']:.2%}, loss {measured['loss']:.6f}"
            text += " (before the weights were rounded)" * half
        yield f"| {split} accuracy | {text} |"
    yield f"| weights | {'float16, to compute in float32' if half else 'float32'} |"


def _settings(config: configs.Config) -> Iterator[str]:
    """Yields the fields of a config that differ from the defaults of capsjax."""
    default = named(configs.to_dict(configs.Config()))
    default |= {
        name: getattr(config, name) for name in ("experiment", "variant", "seed")
    }
    for name, value in named(configs.to_dict(config)).items():
        if name not in default or default[name] != value:
            yield f"`{name.replace('/', '.')}={printable(str(value))}`"


def _options(run: Run) -> tuple[str, str]:
    """Returns what a command and what ``load_run`` need besides the folder."""
    if '"class": ' not in json.dumps(configs.to_dict(run.config)):
        return "", ""
    return " --config EXPERIMENT.py", ", config=experiment.get_config()"


def _commands(run: Run) -> str:
    option, _ = _options(run)
    return f"python -m capsjax.predict --workdir FOLDER{option} picture.png"


def _program(run: Run) -> str:
    _, option = _options(run)
    shape = ", ".join(map(str, run.image_shape))
    return (
        "import capsjax\n\n"
        f'run = capsjax.load_run("FOLDER"{option})\n'
        f"label, activation, pose = run.predict(images)  # uint8, [n, {shape}]"
    )


def _images(run: Run) -> str:
    """Describes the way from a picture to the numbers that the network sees."""
    height, width, channels = run.image_shape
    colours = {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")
    picture = "The middle of a picture is scaled to that size."
    if run.preparation.is_drawn:
        picture = (
            "A drawing becomes light on dark and is scaled and centred, as the digits "
            f"of {run.preparation.kind} are."
        )
    crop = ""
    if run.config.data.crop:
        crop = f" The network sees the middle {run.config.data.crop} pixels of each."
    return (
        f"{height} x {width} pixels, {colours}, divided by 255. {picture}{crop} "
        "`capsjax.predict` does this by the description in `dataset.json`."
    )
