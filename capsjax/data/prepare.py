"""Downloads a data set once: ``python -m capsjax.data.prepare NAME``.

In a process of its own, because TensorFlow, which some sets need for this, shall not
live in one with JAX. Reading what is written here needs no TensorFlow.
"""

import argparse
import sys
from collections.abc import Sequence

from capsjax.data.dataset import DatasetError
from capsjax.data.loading import import_tfds_reader
from capsjax.runtime.console import answer, command


@command("capsjax.data.prepare", DatasetError)
def main(arguments: Sequence[str] | None = None) -> int:
    """Prepares the set that the command line names, and prints where it is."""
    parser = argparse.ArgumentParser("capsjax.data.prepare", description=__doc__)
    parser.add_argument("name", help='as TensorFlow Datasets spells it: "omniglot"')
    parser.add_argument("--data_dir", help="where to put it, if not the usual folder")
    options = parser.parse_args(arguments)
    reader = import_tfds_reader(options.name)
    answer(str(reader.prepare(options.name, data_dir=options.data_dir)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
