"""The leaderboard of a benchmark: an index, and one page for each run.

Every page is one file that loads nothing. The index has a script that sorts and chooses; the page
allows this one script by its hash and no other, and everything can be read without it. The pages of
the runs have no script. Labels, reasons and settings are text from strangers, and are escaped.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from bezoar.errors import InputError
from bezoar.records import write_text
from bezoar.report import environment
from bezoar.report.leaderboard_runs import page_of
from bezoar.report.leaderboard_view import read_board
from bezoar.report.run_view import read_run

SCRIPT = Path(__file__).with_name("leaderboard.js")


def write_leaderboard(
    folder: Path, summary: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]
) -> None:
    """Writes ``index.html``, and ``runs/<key>.html`` for every run that has a record.

    Args:
        folder: where to; it must be there. Pages of runs that are no longer asked for stay.
        summary: what ``bezoar.bench.summarise`` returned.
        records: address → result file, done or failed.

    Raises:
        InputError: nothing can be written there, or an address is no name for a file.
    """
    for key in records:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", key):
            raise InputError(
                f"the run {key!r} cannot be the name of a page; expected letters, digits, - and _"
            )
    runs = (folder / page_of("")).parent
    try:
        runs.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{runs} cannot be made: {error.strerror or error}") from error
    for key, record in records.items():
        write_text(folder / page_of(key), render_run(record, str(summary.get("title"))))
    write_text(folder / "index.html", render_board(summary, records))


def render_board(
    summary: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]] | None = None
) -> str:
    """Returns the index as HTML; runs without a record are not linked."""
    script = SCRIPT.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        environment()
        .get_template("leaderboard.html.j2")
        .render(
            board=read_board(summary, records or {}),
            script=Markup(script),  # noqa: S704  # our own file, and not HTML
            script_hash=f"sha256-{digest}",
        )
    )


def render_run(record: Mapping[str, Any], benchmark: str) -> str:
    """Returns the page of one run as HTML.

    Args:
        record: a result file.
        benchmark: the title of the leaderboard.
    """
    return environment().get_template("run.html.j2").render(run=read_run(record, benchmark))
