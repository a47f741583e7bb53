"""The pages of one method and of one attack: what the registry, the code and the runs say."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from page_settings import parameters_table, settings_table
from page_tables import by_attack, by_method, markdown

from bezoar.attacks import Attack
from bezoar.bench.table import NONE, percent
from bezoar.errors import InputError
from bezoar.methods import Method
from bezoar.pools import Entry

Runs = Sequence[Mapping[str, Any]]


def method_head(kind: type[Method], *, described: bool) -> str:
    """What stands before the hand-written text of a method: title and facts.

    Args:
        kind: the method.
        described: whether there is such a text; otherwise the docstring takes its place.
    """
    facts = {
        "name": f"`{kind.name}`",
        "paper": kind.paper or NONE,
        "finds the target class": "yes" if kind.inspects else "no",
        "removes the backdoor": "no" if kind.remove is Method.remove else "yes",
        "needs": kind.needs,
        "layers": kind.layers,
        "cost": kind.cost,
        "source": f"`{_source(kind)}`",
    }
    head = f"# {kind.title}\n\n{_facts(facts)}"
    return head if described else f"{head}\n\n{_docstring(kind)}"


def method_tail(kind: type[Method], runs: Runs, results: Mapping[str, Any]) -> str:
    """What stands behind it: the measured tables and the settings.

    Args:
        kind: the method.
        runs: all runs of the benchmark.
        results: file name → content, of the other measurements.
    """
    return (
        f"## Measured\n\n{_measured(kind.name, runs, results)}\n\n## Settings\n\n{_settings(kind)}"
    )


def attack_page(
    kind: type[Attack], runs: Runs, entries: Sequence[Entry], results: Mapping[str, Any]
) -> str:
    """The page of an attack.

    Args:
        kind: the attack.
        runs: all runs of the benchmark.
        entries: the models of the pool that carry it.
        results: file name → content, of the other measurements.
    """
    facts = {
        "name": f"`{kind.name}`",
        "paper": kind.paper or NONE,
        "the attacker controls": "the " + kind.controls.replace("images", "training images"),
        "labels of poisoned images": "stay" if kind.clean_label else "changed",
        "modes": ", ".join(kind.modes),
        "needs a network trained on clean images": "yes" if kind.needs_surrogate else "no",
        "source": f"`{_source(kind)}`",
    }
    own = parameters_table(kind, Attack) or "None of its own."
    scanned = _scanned(kind.name, results.get("scan_power.json", {}))
    return (
        "\n\n".join(
            [
                f"# {kind.title}",
                _facts(facts),
                _docstring(kind),
                "## Parameters",
                f"Beside those of [every attack](../attacks.md#which-labels):\n\n{own}",
                "## Methods against it",
                _against(kind.name, runs),
                *(["## Scans of it", scanned] if scanned else []),
                "## Models of the pool",
                _pool_table(entries) or "The pool in this repository has none.",
            ]
        )
        + "\n"
    )


def _facts(facts: Mapping[str, str]) -> str:
    name, *rows = (f"| {key} | {value} |" for key, value in facts.items())
    return "\n".join([name, "| --- | --- |", *rows])


def _settings(kind: type[Method]) -> str:
    try:
        published = kind.published()
    except InputError:
        published = None
    if not kind.__struct_fields__:
        return "There are none."
    text = "`--set NAME=VALUE` changes one; a grid writes `" + kind.name + ":NAME=VALUE`."
    if published is None:
        text += " There is no preset of published settings."
    else:
        text += " `--preset published` takes those of the paper or of its code, as far as known."
    return f"{text}\n\n{settings_table(kind(), published)}"


def _measured(name: str, runs: Runs, results: Mapping[str, Any]) -> str:
    parts = []
    groups: dict[tuple[str, int, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        if run["method"] == name and run["role"] != "reference":
            groups.setdefault((run["half"], run["images"], run["label"]), []).append(run)
    if groups:
        parts.append(
            "In percent, on the models of [the benchmark](../benchmark.md); intervals, times and "
            "the comparison with fine-tuning are on [the leaderboard](../leaderboard.md)."
        )
    else:
        parts.append("It is not in the grid of [the leaderboard](../leaderboard.md).")
    for (half, images, label), group in groups.items():
        parts += [f"### `{label}`, {images} images, {half} models", by_attack(group)]
    if others := [_linked(r["title"]) for file, r in results.items() if _is_about(name, file, r)]:
        parts += ["### Elsewhere", "\n".join(f"- {link}" for link in others)]
    return "\n\n".join(parts)


def _is_about(name: str, file: str, result: Mapping[str, Any]) -> bool:
    """Whether a result file is named after the method, or has runs of it."""
    rows = (row for rows in result.values() if isinstance(rows, list) for row in rows)
    return file.startswith(name.replace("-", "_") + "_") or any(
        isinstance(row, dict) and row.get("method") == name for row in rows
    )


def _linked(title: str) -> str:
    anchor = re.sub(r"[^\w -]", "", title.lower())
    return f"[{title}](../measured.md#{re.sub('[ -]+', '-', anchor)})"


_BOARDS = {"held-out": "../leaderboard.md", "development": "../leaderboard_development.md"}


def _against(name: str, runs: Runs) -> str:
    there = [run for run in runs if run["attack"] == name and run["status"] == "backdoored"]
    parts = []
    for half in dict.fromkeys(run["half"] for run in there):
        table = by_method([run for run in there if run["half"] == half])
        parts += [f"On {half} models ([the leaderboard]({_BOARDS[half]})), in percent:", table]
        if half == "development":
            parts.append("The settings of our own methods were chosen on development models.")
    none = "No model with it is in the grids of [the leaderboards](../leaderboard.md)."
    return "\n\n".join(parts) or none


def _scanned(name: str, power: Mapping[str, Any]) -> str:
    """How many looks flag it, a line for each choice of witnesses; empty where none looked."""
    rows = [row for row in power.get("by attack", ()) if row["attack"] == name]
    if not rows:
        return ""
    models, draws = rows[0]["backdoored models"], rows[0]["draws of images"]
    lines = [
        f"- With {row['asked']}, the scan flags {row['flagged at 0.05']} of {row['looks']} looks "
        f"at 5 %, {row['flagged at 0.01']} at 1 %; the right class comes first in "
        f"{row['class right']}."
        for row in rows
    ]
    return (
        f"{models} held-out model{'' if models == 1 else 's'}, {draws} looks at each "
        f"({_linked(power['title'])}):\n\n" + "\n".join(lines)
    )


def _pool_table(entries: Sequence[Entry]) -> str:
    return markdown(
        [
            {
                "model": f"`{entry.name}`",
                "half": entry.half,
                "status": entry.status,
                "data": entry.data,
                "network": f"`{entry.network}`",
                "target": str(entry.target),
                "rate": f"{entry.rate:g}",
                "ACC": percent(entry.acc),
                "ASR": percent(entry.asr),
                "ASR of the clean twin": percent(entry.twin_asr),
            }
            for entry in entries
        ]
    )


def _docstring(kind: type) -> str:
    """The docstring of the module that the class stands in, as Markdown."""
    text = inspect.cleandoc(sys.modules[kind.__module__].__doc__ or "")
    return text.replace("``", "`")


def _source(kind: type) -> str:
    return f"src/{kind.__module__.replace('.', '/')}.py"
