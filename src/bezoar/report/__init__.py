"""The report: one self-contained HTML page from the record of a scan, a repair or a demo.

The page needs no network, no script and no file beside it. It reads records, never internals, and
everything in a record is text from a stranger's model: it is escaped, and the page forbids itself
to load or run anything.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from bezoar.errors import InputError
from bezoar.report.page_view import read_page
from bezoar.report.pictures import Picture

__all__ = ["Picture", "render", "write"]


def render(record: Mapping[str, Any], pictures: Sequence[Picture] = ()) -> str:
    """Returns the page for a record, as HTML.

    Args:
        record: what ``scan``, ``clean`` or ``demo`` wrote as JSON; ``record["kind"]`` says which.
            Sections that are missing or null are left out.
        pictures: example images, shown with the scan (of the backdoored network in a demo).

    Raises:
        InputError: the record is of no known kind.

    >>> page = render({"kind": "scan", "verdict": "nothing found"})
    >>> "<h1>" in page and "no proof" in page
    True
    """
    return _environment().get_template("page.html.j2").render(page=read_page(record, pictures))


def write(path: str | os.PathLike[str], html: str) -> None:
    """Writes a page beside ``path`` and renames it, so that no half page is ever there.

    Raises:
        InputError: nothing can be written there.
    """
    target = Path(path)
    if target.is_dir():
        raise InputError(f"report path {target} is a folder; give the name of a file in it")
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        partial.write_text(html, encoding="utf-8", newline="\n")
        partial.replace(target)
    except OSError as error:
        raise InputError(
            f"the report cannot be written to {target}: {error.strerror or error}; "
            "give a path in an existing folder that you may write to"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("bezoar.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
