"""Writes ``docs/measured.md`` and the "Measured" part of ``README.md`` from ``results/*.json``.

    python benchmarks/make_measured.py           writes both
    python benchmarks/make_measured.py --check   fails where they differ from the results

A result file is a JSON object with ``title``, ``command``, ``versions``, ``machine`` and one or
more lists of rows. Where it has a ``summary``, that is shown instead of the single runs, and after
it what it tells ``by attack``; only the page shows that. Rows that differ in nothing but their
``seed`` become one row with the mean and the range. A ``picture`` says which ``file`` below
``docs`` it drew and what that ``shows``; only the page shows it.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
NOTHING = "Nothing has been measured yet: `benchmarks/results` holds no result."
RATE = {"value", "low", "high", "count"}
BY_ATTACK = "by attack"
# What identifies a run; everything else in a row was measured.
KEYS = (
    *("model", "method", "kind", "networks", "name", "attack", "clean images", "target"),
    *("factor", "setting", "half", "precaution", "share of the way", "command", "threads"),
)
# The words of columns whose numbers are shares, written as percentages.
SHARES = ("acc", "asr", "ra", "der")
# Numbers that are names: an average of class indices says nothing.
NAMES = ("first", "target", "target_class")
# The results that the README shows, where they are there; the page in docs shows all of them.
FRONT = ("scan_power.json", "automatic.json", "command_speed.json")
# The columns that the README shows; the page in docs shows every one.
BRIEF = (
    *("model", "method", "kind", "networks", "counted", "verdict", "rank of target"),
    *("before acc", "after acc", "before asr", "after asr", "accepted"),
    *("target ranked first", "flagged at 0.05", "backdoor found"),
    *(
        "half",
        "clean images",
        "pool half",
        "models are",
        "family",
        "samples",
        "runs",
        "acc drop mean",
        "asr before",
        "asr after mean",
    ),
    *("asked", "clean models", "backdoored models", "false alarms at 0.05", "class right"),
    *("backdoored", "acc drop", "asr after", "der", "worst der"),
    *("clean", "acc drop, clean", "attack", "models"),
    *("auroc", "auroc against other classes", "flagged of clean", "flagged of stamped"),
    *("command", "repairs tried", "threads", "precaution"),
    *("case", "with", "classes", "features", "images", "images a minute", "seconds", "ratio"),
)
Row = dict[str, Any]


def page(results: dict[str, Row]) -> str:
    """The whole of ``docs/measured.md``; ``results`` is file name → its content."""
    parts = [
        "# Measured",
        "Every number on this page comes from a result file in `benchmarks/results`, and the "
        "command beside it makes that file again. The page itself is written by "
        "`python benchmarks/make_measured.py`.",
    ]
    for name, result in results.items():
        parts += [f"## {result.get('title', name)}", _origin(name, result)]
        parts += [markdown(table) for table in tables(result)]
        if drawn := result.get("picture"):
            parts.append(f"![{drawn['shows']}]({drawn['file']})\n\n{drawn['shows']}.")
    if not results:
        parts.append(NOTHING)
    else:
        parts.append(
            "Percentages are shares of images or networks; brackets hold the 95 % interval of one "
            "share (Wilson), or the range over the seeds. A dash means: does not apply."
        )
    return "\n\n".join(parts) + "\n"


def digest(results: dict[str, Row]) -> str:
    """The part of the README: what matters most to users, with the columns that matter most."""
    parts = []
    chosen = {name: results[name] for name in FRONT if name in results} or results
    for name, result in chosen.items():
        brief = [
            [{key: row[key] for key in BRIEF if key in row} for row in table]
            for table in tables({k: v for k, v in result.items() if k != BY_ATTACK})
            if "factor" not in table[0]  # one setting after another is for the page alone
        ]
        brief = [table for table in brief if len({key for row in table for key in row}) > 2]
        where = f" ({result['machine']})" if "machine" in result else ""
        parts += [f"{result.get('title', name)}{where}:", *map(markdown, brief)] if brief else []
    parts.append(
        "Brackets hold 95 % intervals, or the range over seeds. All of it, with the commands that "
        "measure it again: [docs/measured.md](docs/measured.md)."
        if results
        else NOTHING
    )
    return "\n\n".join(parts)


def tables(result: Row) -> Iterator[list[Row]]:
    """The tables of one result: lists of rows with text in their cells."""
    lists = {key: value for key, value in result.items() if _is_rows(value)}
    if "summary" in lists:
        lists = {key: lists[key] for key in ("summary", BY_ATTACK) if key in lists}
    for rows in lists.values():
        flat = [dict(_flatten(row)) for row in rows]
        # Runs of different methods measure different things, so each method has its own table.
        for method in dict.fromkeys(row.get("method") for row in flat):
            yield _over_seeds([row for row in flat if row.get("method") == method])
    plain = {
        key: value
        for key, value in result.items()
        if key not in ("title", "command", "machine", "versions", "picture") and not _is_rows(value)
    }
    if facts := dict(_flatten(plain)):
        yield [{"fact": key, "value": cell([value], key)} for key, value in facts.items()]


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table; numbers to the right."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [[_escape(column) for column in columns]]
    lines += [[_escape(row.get(column, "–")) for column in columns] for row in rows]
    right = [all(_numeric(row.get(column, "–")) for row in rows) for column in columns]
    lines.insert(1, ["--:" if numeric else "---" for numeric in right])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(values: Sequence[Any], column: str = "") -> str:
    """The text of one cell: one value, or the values of all seeds."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    if all(isinstance(value, dict) for value in known):
        shares = [value["value"] for value in known]
        if len(shares) == 1:
            only = known[0]
            return f"{_percent(shares[0])} % ({_percent(only['low'])} to {_percent(only['high'])})"
        spread = f" ({_percent(min(shares))} to {_percent(max(shares))})"
        return f"{_percent(sum(shares) / len(shares))} %{spread if len(set(shares)) > 1 else ''}"
    if all(isinstance(value, bool) for value in known):
        if len(set(known)) == 1:
            return "yes" if known[0] else "no"
        return f"yes in {sum(known)} of {len(known)}"
    if column not in NAMES and all(isinstance(value, int | float) for value in known):
        if len(set(known)) == 1:
            return _number(known[0], column)
        low, high = _number(min(known), column), _number(max(known), column)
        mean = _number(sum(known) / len(known), column)
        return f"{mean} ({low.removesuffix(' %')} to {high.removesuffix(' %')})"
    counts = Counter(map(str, known))
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{text} ({count} of {len(known)})" for text, count in counts.items())


# -- inner works -----------------------------------------------------------------------------------


def _flatten(row: Row, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in row.items():
        if isinstance(value, dict) and set(value) != RATE:
            yield from _flatten(value, f"{prefix}{key} ")
        elif _is_rows(value):
            continue  # single runs: a cell cannot hold them, and the file does
        elif isinstance(value, list):
            yield prefix + key, ", ".join(map(str, value))
        else:
            yield prefix + key, value


def _over_seeds(rows: list[Row]) -> list[Row]:
    """One row for all seeds of the same run."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for place, row in enumerate(rows):
        same = tuple(str(row.get(key)) for key in KEYS) if "seed" in row else (place,)
        groups.setdefault(same, []).append(row)
    shown = []
    for group in groups.values():
        columns = list(dict.fromkeys(key for row in group for key in row if key != "seed"))
        line = {column: cell([row.get(column) for row in group], column) for column in columns}
        if "seed" in group[0]:
            line["seeds"] = str(len(group))
        shown.append(line)
    return shown


def _origin(name: str, result: Row) -> str:
    facts = [f"Results: `benchmarks/results/{name}`."]
    if "command" in result:
        facts.append(f"Measured again by: `{result['command']}`.")
    versions = result.get("versions")
    if isinstance(versions, dict):
        facts.append("Versions: " + ", ".join(f"{k} {v}" for k, v in versions.items()) + ".")
    if "machine" in result:
        facts.append(f"Machine: {cell([str(result['machine'])])}.")
    runs = result.get("runs")
    parts = list(runs.values()) if isinstance(runs, dict) else [runs]
    if "summary" in result and all(map(_is_rows, parts)):
        facts.append(f"{sum(map(len, parts))} single runs lie in the file.")
    return " ".join(facts)


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _number(value: float, column: str) -> str:
    if column.split(" ")[0] in ("p", "p-value"):
        return "< 0.0001" if value < 1e-4 else f"{value:.2g}"
    if isinstance(value, float) and any(word.strip(",") in SHARES for word in column.split()):
        return f"{_percent(value)} %"
    if isinstance(value, int) or float(value).is_integer():
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"


def _percent(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:.1f}"  # no minus before a zero


def _numeric(text: str) -> bool:
    return text == "–" or text.lstrip("<−- ")[:1].isdigit()


def _escape(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _with_digest(readme: str, text: str) -> str:
    before, _, rest = readme.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        sys.exit(f"README.md has no {BEGIN} followed by {END}")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def main(root: Path, *, check: bool) -> None:
    """Writes both files below ``root``, or compares them."""
    files = sorted((root / "benchmarks" / "results").glob("*.json"))
    results = {file.name: json.loads(file.read_text(encoding="utf-8")) for file in files}
    readme = root / "README.md"
    wanted = {
        root / "docs" / "measured.md": page(results),
        readme: _with_digest(readme.read_text(encoding="utf-8"), digest(results)),
    }
    stale = [
        path
        for path, text in wanted.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if check and stale:
        names = " and ".join(path.relative_to(root).as_posix() for path in stale)
        sys.exit(f"{names} do not show what is in benchmarks/results; run `make measured`")
    for path in stale:
        partial = path.with_suffix(".part")
        partial.write_text(wanted[path], encoding="utf-8", newline="\n")
        partial.replace(path)


if __name__ == "__main__":
    main(ROOT, check="--check" in sys.argv[1:])
