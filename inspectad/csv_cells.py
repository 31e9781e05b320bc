"""Cells of a CSV file that a spreadsheet shows and does not run, and that read back as they were. Pure.

A spreadsheet takes a cell that begins with one of ``= + - @`` for a formula, also behind spaces, tabs and line ends,
and a name or an error text may come from anybody. Quotes do not help; the cell has to begin with something else.
"""

import csv
import io
import re
from collections.abc import Iterable
from typing import Final

_FORMULA: Final = re.compile(r"[\s\0]*[=+\-@＝＋－＠]|[\t\r\n\0]")  # the wide ones count in East Asian Excel
_SPLIT: Final = re.compile(r"[;\t]\s*[=+\-@＝＋－＠]")
"""A spreadsheet whose list separator is no comma, as in much of Europe, would begin a cell behind it."""


def safe_name(name: str) -> str:
    """A relative path as a cell: ``./`` before one that would be a formula, which names the same file."""
    return f"./{name}" if name.startswith("./") or _FORMULA.match(name) else name


def name_of(cell: str) -> str:
    """The path again."""
    return cell.removeprefix("./")


def safe_text(text: str) -> str:
    """A text as a cell: an apostrophe before what would be a formula, or looks as if it had got one already."""
    return f"'{text}" if _FORMULA.match(text.lstrip("'")) else text


def text_of(cell: str) -> str:
    """The text again."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell.lstrip("'")) else cell


def csv_line(values: Iterable[object]) -> bytes:
    """One record of a CSV file (RFC 4180): texts as they are, quoted where they must be; see `safe_text`."""
    cells = list(values)
    splits = any(isinstance(cell, str) and _SPLIT.search(cell) for cell in cells)
    text = io.StringIO()
    # The line end is one that makes a lone \r in a name be quoted as well.
    writer = csv.writer(text, lineterminator="\r\n", quoting=csv.QUOTE_ALL if splits else csv.QUOTE_MINIMAL)
    writer.writerow(cells)
    line = text.getvalue().removesuffix("\r\n") + "\n"
    return line.encode("utf-8", "surrogateescape")  # file names need not be UTF-8
