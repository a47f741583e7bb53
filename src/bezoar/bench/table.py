"""The tables of a benchmark as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from bezoar.spreadsheet import inert

NONE = "–"

_NOTES = (
    "ACC drop, ASR, RA and DER are percentages: means over the models that count as backdoored, "
    "seeds of a model averaged first; brackets hold the 95 % interval of the mean over models "
    "(bootstrap). *Worst attack* is the attack with the lowest mean DER. *Removed* counts runs "
    "with an ASR of at most 10 % and a loss of at most 5 points. *Clean models* is the loss of "
    "accuracy where there was no backdoor. *Against fine-tuning* is the DER less that of plain "
    "fine-tuning on the same model, images and seed that took at least as many processor seconds "
    "(`<`: for some runs even the longest took less). *Oracle* is the DER of the setting with the "
    "lowest true ASR among those that keep nine tenths of the accuracy: no result of the method, "
    "and lower than its own where accuracy pays for it. Seconds are those of the method alone; on "
    "a machine that does other work, too, only processor seconds can be compared. A dash means "
    "that the number does not exist for this row."
)


def markdown(summary: Mapping[str, Any]) -> str:
    """The summary as Markdown: one table a half, one of the attacks, and what went wrong."""
    counts = summary["counts"]
    parts = [
        f"# {summary['title']}",
        f"{counts['done']} of {counts['planned']} runs are done, {counts['failed']} failed, "
        f"{counts['missing']} are still to be done.",
        *(f"Note: {notice}." for notice in summary["notices"]),
        _NOTES,
    ]
    for half in dict.fromkeys(row["half"] for row in summary["rows"]):
        rows = [row for row in summary["rows"] if row["half"] == half]
        parts += [f"## {half.capitalize()} models", _table(list(map(_cells, rows)))]
        if attacks := _attacks(rows, summary["attacks"]):
            parts += [f"### ASR after, and DER, by attack ({half})", attacks]
    if published := _reported(summary["runs"]):
        parts += ["## Beside published results", published]
    if failed := [run for run in summary["runs"] if run["state"] == "failed"]:
        parts += ["## What failed", _table(list(map(_failure, failed)))]
    return "\n\n".join(parts) + "\n"


def comma_separated(summary: Mapping[str, Any]) -> str:
    """One line a run, with every number; what does not exist is an empty cell."""
    lines = [dict(_flatten(run)) for run in summary["runs"]]
    columns = list(dict.fromkeys(column for line in lines for column in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: inert(cell) for column, cell in line.items()} for line in lines)
    return text.getvalue()


def percent(share: float | None) -> str:
    """A share as a percentage with one decimal."""
    return NONE if share is None else f"{100 * share:.1f}"


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    compared, removed = row.get("same_compute"), row.get("removed")
    worst, oracle = row.get("worst_attack"), row.get("oracle")
    gain = NONE
    if compared:
        sign = "+" if compared["gain"]["mean"] >= 0 else ""
        gain = f"{'<' if compared['short'] else ''}{sign}{percent(compared['gain']['mean'])}"
    return {
        "method": f"`{row['label']}`" if row["role"] != "reference" else f"*{row['label']}*",
        "images": NONE if row["role"] == "reference" else str(row["images"]),
        "models × seeds": f"{row['models']} × {row['seeds']}",
        "failed": str(row["failed"]),
        "to do": str(row["missing"]),
        "ACC drop": _with_interval(row.get("acc_drop")),
        "ASR after": _with_interval(row.get("asr_after")),
        "RA after": percent(row["ra_after"]["mean"]) if "ra_after" in row else NONE,
        "DER": _with_interval(row.get("der")),
        "± seeds": percent(row["der"]["seed_std"]) if "der" in row else NONE,
        "worst attack": f"{percent(worst['der'])} ({worst['attack']})" if worst else NONE,
        "removed": f"{removed['count']} of {removed['of']}" if removed else NONE,
        "clean models": percent(row["clean_drop"]["mean"]) if "clean_drop" in row else NONE,
        "against fine-tuning": gain,
        "oracle": percent(oracle["der"]["mean"]) if oracle else NONE,
        "seconds": f"{row['seconds']:.1f}" if "seconds" in row else NONE,
        "processor seconds": f"{row['processor_seconds']:.1f}"
        if "processor_seconds" in row
        else NONE,
        "peak MiB": f"{row['peak_memory'] / 2**20:.0f}" if "peak_memory" in row else NONE,
    }


def _with_interval(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return NONE
    if value["low"] is None:
        return percent(value["mean"])
    return f"{percent(value['mean'])} ({percent(value['low'])} to {percent(value['high'])})"


def _attacks(rows: Sequence[Mapping[str, Any]], attacks: Sequence[str]) -> str:
    known = [row for row in rows if "attacks" in row]
    there = [a for a in attacks if any(a in row["attacks"] for row in known)]
    return _table([_by_attack(row, there) for row in known]) if there else ""


def _by_attack(row: Mapping[str, Any], attacks: Sequence[str]) -> dict[str, str]:
    cells = {"method": f"`{row['label']}`", "images": str(row["images"])}
    for attack in attacks:
        found = row["attacks"].get(attack)
        text = f"{percent(found['asr_after'])} / {percent(found['der'])}" if found else NONE
        cells[attack] = text
    return cells


def _reported(runs: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        {
            "method": f"`{run['label']}`",
            "attack": run["attack"],
            "data": run["data"],
            "reported": f"{_way(one['acc'])} / {_way(one['asr'])}, {one['network']}, "
            f"{one['images']} images ({one['source']})",
            "measured": f"{_way(_before_and_after(run, 'acc'))} / "
            f"{_way(_before_and_after(run, 'asr'))}, {run['network']}, {run['images']} images, "
            f"seed {run['seed']}, {run['model']}",
        }
        for run in runs
        if run["state"] == "done" and "before" in run and run["role"] == "method"
        if run["status"] == "backdoored"
        for one in run["reported"]
    ]
    return _table(rows) if rows else ""


def _before_and_after(run: Mapping[str, Any], name: str) -> tuple[float, float]:
    return run["before"][name]["value"], run["after"][name]["value"]


def _way(pair: Sequence[float]) -> str:
    return f"{percent(pair[0])} → {percent(pair[1])}"


def _failure(run: Mapping[str, Any]) -> dict[str, str]:
    return {
        "method": f"`{run['label']}`",
        "images": str(run["images"]),
        "seed": str(run["seed"]),
        "model": run["model"],
        "reason": " ".join(str(run["failure"]).split()).replace("|", "\\|"),
    }


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    left = {"method", "model", "reason", "attack", "data", "reported", "measured"}
    lines = [columns, ["---" if column in left else "--:" for column in columns]]
    lines += [[row.get(column, NONE) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _flatten(row: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    cells: list[tuple[str, Any]] = []
    for key, value in row.items():
        if key == "reported":
            continue
        if isinstance(value, Mapping):
            cells += _flatten(value, f"{prefix}{key}_")
        else:
            cells.append((prefix + key, value))
    return cells
