"""Takes the picture of the explorer with a four drawn and slanted, in Chromium.

    PYTHONPATH=tests/helpers python docs/figures/explorer.py

Writes explorer.png, and ../explorer.html, the page of the network that comes with
capsjax.
"""

import pathlib

from chromium import browse
from PIL import Image

from capsjax.explorer.page import make_page
from capsjax.storage.pretrained import load_pretrained

HERE = pathlib.Path(__file__).parent
PICTURE = HERE / "explorer.png"
# A four, and the slider that slants it most, moved.
DRAW = """
const strokes = FOUR.map(stroke => stroke.map(([x, y]) => [x - 56, y + 15]));
change({ strokes, test: null, picture: null });
think();
render();
"""
MOVE = "state.step = 1; steps()[1].act(); state.step = null"


def main():
    page = make_page(load_pretrained("mnist")).write(HERE.parent / "explorer.html")
    with browse() as tab:
        tab.open(page)
        tab.wait("document.body.dataset.state === 'ready'")
        tab.js(DRAW + MOVE)
        bottom = tab.js(
            "document.querySelector('#pose').getBoundingClientRect().bottom"
        )
        tab.screenshot(PICTURE)
    picture = Image.open(PICTURE).convert("RGB").crop((0, 0, 1280, int(bottom) + 12))
    picture.quantize(96).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
