"""Text of strangers in CSV: what a spreadsheet would compute is quoted, so that it only shows it.

Names of classes and files come from files that are not trusted, and a cell that begins as a formula
is run by the program that opens the table.
"""

from __future__ import annotations

from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that spreadsheets compute


def inert(value: Any) -> Any:
    """Text with an apostrophe in front where it begins like a formula; all else as it is.

    >>> inert("=HYPERLINK(0)"), inert("stop"), inert(-0.5)
    ("'=HYPERLINK(0)", 'stop', -0.5)
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
