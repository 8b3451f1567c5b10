"""The README's numbers are the numbers of docs/results.md, their one home."""

import re

import pytest
from places import ROOT

# A number with all of its digits, and with its deviation: 99.5 is not in 99.53 ± 0.03.
DIGITS = r"\d+(?:,\d{3})*(?:\.\d+)?"
NUMBER = re.compile(rf"(?<![\w.,]){DIGITS}(?: ± {DIGITS})?(?!\w|[.,]\d)")


def numbers_in(line):
    """Numbers of a line, except those in code."""
    return NUMBER.findall(re.sub(r"`[^`]*`", "", line))


def headline_rows():
    """Rows of the README's table of results that hold a number."""
    section = (ROOT / "README.md").read_text().split("\n## Results\n")[1]
    rows = [
        line for line in section.split("\n## ")[0].splitlines() if line.startswith("|")
    ]
    return [row for row in rows if numbers_in(row)]


ROWS = headline_rows()


def test_the_readme_has_a_table_of_headline_numbers():
    assert len(ROWS) >= 3


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_one_row_of_the_results_page_has_all_numbers_of_a_headline(row):
    results = (ROOT / "docs" / "results.md").read_text().splitlines()
    tables = [set(numbers_in(line)) for line in results if line.startswith("|")]
    assert any(set(numbers_in(row)) <= numbers for numbers in tables), row


def test_a_number_is_compared_with_all_of_its_digits():
    line = "| **99.62 ± 0.03 %** (99.59, 99.64), 990,000 of `x.y=5` at 0ec25b7 |"
    assert numbers_in(line) == ["99.62 ± 0.03", "99.59", "99.64", "990,000"]


def test_the_readme_stays_within_900_words():
    assert len((ROOT / "README.md").read_text().split()) <= 900
