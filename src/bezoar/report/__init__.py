"""The report: one self-contained HTML page from the record of a command.

The page needs no network, no script and no file beside it. It reads records, never internals, and
everything in a record is text from a stranger's model: it is escaped, and the page forbids itself
to load or run anything.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from bezoar.records import write_text
from bezoar.report import words
from bezoar.report.page_view import read_page
from bezoar.report.pictures import Picture

if TYPE_CHECKING:
    from bezoar.report.contact_sheet import ContactSheet  # needs torch, which a page does not

__all__ = ["Picture", "render", "write"]


def render(
    record: Mapping[str, Any],
    pictures: Sequence[Picture] = (),
    sheet: ContactSheet | None = None,
) -> str:
    """Returns the page for a record, as HTML.

    Args:
        record: what ``scan``, ``clean``, ``synthesize`` or ``demo`` wrote as JSON;
            ``record["kind"]`` says which. Sections that are missing or null are left out.
        pictures: example images, shown with the scan (of the backdoored network in a demo).
        sheet: the images that were made up, class by class.

    Raises:
        InputError: the record is of no known kind.

    >>> page = render({"kind": "scan", "verdict": "nothing found"})
    >>> "<h1>" in page and "no proof" in page
    True
    """
    page = read_page(record, pictures)
    return environment().get_template("page.html.j2").render(page=page, sheet=sheet)


def write(path: str | os.PathLike[str], html: str) -> None:
    """Writes a page beside ``path`` and renames it, so that no half page is ever there.

    Raises:
        InputError: nothing can be written there.
    """
    write_text(Path(path), html)


@functools.cache
def environment() -> Environment:
    """The templates of the pages: everything is escaped, and a missing name is an error."""
    found = Environment(
        loader=PackageLoader("bezoar.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_together,
    )
    found.filters["pieces"] = words.pieces
    return found


def _together(value: Any) -> Any:
    """A number and its percent sign stay on one line."""
    return value.replace(" %", "\N{NO-BREAK SPACE}%") if isinstance(value, str) else value
