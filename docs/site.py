r"""What the pages of the site have beside plain Markdown.

- ``<!-- include: ../CHANGELOG.md -->`` alone on a page shows that file, which may be a
  notebook. Its links lead to the pages of the site.
- Equations, ``$x$`` and ``$$x$$``, become MathML, which needs no
  program in the browser.
"""

import json
import os
import pathlib
import re

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor

DOCS = pathlib.Path(__file__).parent
# Files outside of docs/ that have a page, or something like it.
PAGES = {
    "../README.md": "index.md",
    "../CHANGELOG.md": "changelog.md",
    "../CONTRIBUTING.md": "contributing.md",
}


class Included(Preprocessor):
    """Replaces a page by the file that it names."""

    def run(self, lines: list[str]) -> list[str]:
        """Returns the lines of the file, or those of the page itself."""
        named = re.fullmatch(r"<!-- include: (\S+) -->\n*", "\n".join(lines))
        if named is None:
            return lines
        path = DOCS / named[1]
        is_notebook = path.suffix == ".ipynb"
        text = (notebook if is_notebook else pathlib.Path.read_text)(path)
        return _with_links(text, path.parent).split("\n")


def _with_links(text: str, folder: pathlib.Path) -> str:
    """Makes the links of a file in a folder relative to the folder of the pages."""

    def replace(found: re.Match[str]) -> str:
        target = pathlib.Path(os.path.relpath(folder / found[1], DOCS)).as_posix()
        return f"]({PAGES.get(target, target)}{found[2] or ''})"

    return re.sub(r"\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)", replace, text)


def notebook(path: pathlib.Path) -> str:
    """Returns a notebook, its code and its outputs as Markdown."""
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        is_code = cell["cell_type"] == "code"
        parts.append(f"```python\n{source}\n```" if is_code else source)
        printed = ""
        for output in cell.get("outputs", ()):
            picture = output.get("data", {}).get("image/png")
            if picture is not None:
                # The cell above is what the picture shows.
                parts.append(f"![Output](data:image/png;base64,{picture.strip()})")
            printed += "".join(output.get("text", ()))
        if printed:
            parts.append(f"```text\n{printed.rstrip()}\n```")
    return "\n\n".join(parts)


def mathml(tex: str, display: str = "block") -> str:
    """Returns an equation as MathML, with bars as high and as near as parentheses."""
    bar = '<mo stretchy="false" lspace="0" rspace="0">&#x0007C;</mo>'
    found = convert(" ".join(tex.split()), display=display)
    return re.sub(r"<mo[^>]*>&#x0007C;</mo>", bar, found)


class Equation(InlineProcessor):
    """Makes MathML of an equation."""

    def handleMatch(self, m, data):
        """Returns the equation, and where it lies."""
        math = mathml(m[2], "block" if m[1] == "$$" else "inline")
        return self.md.htmlStash.store(math), m.start(0), m.end(0)


class SiteExtension(Extension):
    """Adds both to Markdown."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Includes before everything; equations after code, and before the rest."""
        md.preprocessors.register(Included(md), "included", 1000)
        equation = r"(?<![\\$\w])(\$\$?)([^$]+)\1(?![$\w])"
        md.inlinePatterns.register(Equation(equation, md), "equation", 185)
