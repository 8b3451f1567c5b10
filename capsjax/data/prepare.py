"""Downloads a data set once: ``python -m capsjax.data.prepare NAME``.

It runs in its own process, to keep TensorFlow, which some sets need here, away from
JAX. Reading a prepared set needs no TensorFlow.
"""

import argparse
import sys
from collections.abc import Sequence

from capsjax.data.errors import DatasetError
from capsjax.data.loading import import_tfds_reader
from capsjax.runtime.console import answer, command


@command("capsjax.data.prepare", DatasetError)
def main(arguments: Sequence[str] | None = None) -> int:
    """Prepares the set named on the command line, and prints its folder."""
    parser = argparse.ArgumentParser("capsjax.data.prepare", description=__doc__)
    parser.add_argument("name", help='as TensorFlow Datasets spells it: "omniglot"')
    parser.add_argument("--data_dir", help="where to put it, if not the usual folder")
    options = parser.parse_args(arguments)
    reader = import_tfds_reader(options.name)
    answer(str(reader.prepare(options.name, data_dir=options.data_dir)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
