"""Text of strangers in CSV: what a spreadsheet would compute is quoted, so that it only shows it.

Names of classes and files come from files that are not trusted, and a cell that begins as a formula
is run by the program that opens the table. A carriage return ends a row where the cell is not in
quotes, and ``csv`` puts none around it (Python 3.11, with a line feed between rows), so that what
follows would begin a row, and a cell, of its own.
"""

from __future__ import annotations

from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that spreadsheets compute


def inert(value: Any) -> Any:
    r"""Text with an apostrophe in front where it begins like a formula, in one row; all else as is.

    >>> inert("=HYPERLINK(0)"), inert("stop"), inert(-0.5), inert("zero\r=HYPERLINK(0)")
    ("'=HYPERLINK(0)", 'stop', -0.5, 'zero\\r=HYPERLINK(0)')
    """
    if not isinstance(value, str):
        return value
    quoted = f"'{value}" if value.startswith(_FORMULA) else value
    return quoted.replace("\r", "\\r")
