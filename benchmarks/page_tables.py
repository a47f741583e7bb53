"""Markdown tables of a benchmark's runs: one method by attack, one attack by method.

The numbers are means over models that count as backdoored, seeds of a model averaged first, as on
the leaderboard.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bezoar.bench.summary import REMOVED_ASR, REMOVED_DROP, is_removed
from bezoar.bench.table import NONE, percent

Row = Mapping[str, Any]
Cells = Mapping[str, str]

_TEXT = {"attack", "method", "setting", "meaning", "parameter", "model", "half", "status"}
_TEXT |= {"data", "network", "what", "needs", "paper", "finds the class", "default", "published"}


def by_attack(runs: Sequence[Row]) -> str:
    """What one setting of a method did: where it fails, in words, and a row for each attack.

    Args:
        runs: all runs of that setting, budget and half, in any state.
    """
    done = [run for run in runs if run["state"] == "done"]
    backdoored = [run for run in done if run["status"] == "backdoored"]
    parts = [_progress(runs)]
    rows = []
    groups = {a: _of(backdoored, attack=a) for a in sorted({run["attack"] for run in backdoored})}
    if backdoored:
        parts[0] += f" {_removed(backdoored)} {_failures(groups)}"
        rows += [_scores({"attack": _attack(a)}, group) for a, group in groups.items()]
        rows.append(_scores({"attack": "*all of these*"}, backdoored))
    if clean := [run for run in done if run["status"] == "clean"]:
        rows.append(_scores({"attack": "*no backdoor*"}, clean))
    parts += [markdown(rows)] if rows else []
    parts += [f"- `{run['model']}` failed: {run['failure']}" for run in _of(runs, state="failed")]
    return "\n\n".join(parts)


def by_method(runs: Sequence[Row]) -> str:
    """What all methods did to one attack, best first; the references come before them.

    Args:
        runs: all runs on backdoored models of that attack and of one half, in any state.
    """
    groups: dict[tuple[str, int], list[Row]] = {}
    for run in runs:
        if run["state"] == "done" and "der" in run:
            groups.setdefault((run["label"], run["images"]), []).append(run)

    def order(item: tuple[tuple[str, int], list[Row]]) -> tuple[int, float]:
        role = ("reference", "method", "control").index(item[1][0]["role"])
        der = _mean(item[1], _der)
        return role, -der if role else der  # no defense before the clean twin

    rows = []
    for (label, images), group in sorted(groups.items(), key=order):
        reference = group[0]["role"] == "reference"
        link = f"*{label}*" if reference else f"[`{label}`](../methods/{group[0]['method']}.md)"
        first = {"method": link, "images": NONE if reference else str(images)}
        rows.append(_scores(first, group))
    todo = sorted({r["label"] for r in _of(runs, state="missing")})
    failed = sorted({r["label"] for r in _of(runs, state="failed")})
    parts = [markdown(rows)] if rows else []
    for what, labels in (("Still to be done", todo), ("Failed", failed)):
        parts += [f"{what}: {', '.join(f'`{label}`' for label in labels)}."] if labels else []
    return "\n\n".join(parts)


def in_short(runs: Sequence[Row]) -> str:
    """ASR left, points lost and number of models, for an overview."""
    known = [run for run in _of(runs, state="done", status="backdoored") if "der" in run]
    if not known:
        return NONE
    models = len({run["model"] for run in known})
    return f"{percent(_mean(known, _asr))} / {percent(_mean(known, _drop))} ({models})"


def markdown(rows: Sequence[Cells]) -> str:
    """A Markdown table; numbers to the right. Empty where there are no rows."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, ["---" if column in _TEXT else "--:" for column in columns]]
    lines += [[row.get(column, NONE).replace("|", "\\|") for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else ""


# -- inner works -----------------------------------------------------------------------------------


def _progress(runs: Sequence[Row]) -> str:
    states = [run["state"] for run in runs]
    text = f"{states.count('done')} of {len(states)} runs are done"
    text += f", {states.count('failed')} failed" if "failed" in states else ""
    if left := states.count("missing"):
        text += f", {left} {'is' if left == 1 else 'are'} still to be done"
    return f"{text}."


def _removed(runs: Sequence[Row]) -> str:
    count = sum(is_removed(_asr(r), _drop(r)) for r in runs)
    return (
        f"By the usual mark (an ASR of at most {100 * REMOVED_ASR:g} % for at most "
        f"{100 * REMOVED_DROP:g} points of accuracy) it removes the backdoor in {count} of "
        f"{len(runs)} runs, on {len({r['model'] for r in runs})} backdoored models."
    )


def _failures(groups: Mapping[str, Sequence[Row]]) -> str:
    """The attacks whose mean misses the mark, the worst first."""
    missed = {
        name: (_mean(group, _asr), _mean(group, _drop))
        for name, group in groups.items()
        if _mean(group, _asr) > REMOVED_ASR or _mean(group, _drop) > REMOVED_DROP
    }
    if not missed:
        return "On average no attack here misses it."
    told = []
    for name, (asr, drop) in sorted(missed.items(), key=lambda item: (-item[1][0], item[0])):
        why = [f"{percent(asr)} % left"] if asr > REMOVED_ASR else []
        why += [f"{percent(drop)} points lost"] if drop > REMOVED_DROP else []
        told.append(f"{_attack(name)} ({', '.join(why)})")
    return f"**It fails on** {', '.join(told)}."


def _attack(name: str) -> str:
    return f"[`{name}`](../attacks/{name}.md)"


def _scores(first: Cells, runs: Sequence[Row]) -> Cells:
    models = len({run["model"] for run in runs})
    cells = dict(first) | {
        "models × seeds": f"{models} × {len({run['seed'] for run in runs})}",
        "ACC before → after": _way(runs, "acc"),
    }
    if "asr" in runs[0]["after"]:
        cells |= {
            "ASR before → after": _way(runs, "asr"),
            "RA after": percent(_mean(runs, lambda run: run["after"]["ra"]["value"])),
            "DER": percent(_mean(runs, _der)),
        }
    return cells


def _way(runs: Sequence[Row], name: str) -> str:
    before = _mean(runs, lambda run: run["before"][name]["value"])
    after = _mean(runs, lambda run: run["after"][name]["value"])
    return f"{percent(before)} → {percent(after)}".replace(
        " ", "\u00a0"
    )  # one line in a narrow cell


def _of(runs: Sequence[Row], **wanted: str) -> list[Row]:
    return [run for run in runs if all(run[key] == value for key, value in wanted.items())]


def _mean(runs: Sequence[Row], of: Callable[[Row], float]) -> float:
    """Mean over models of the means over their seeds."""
    values: dict[str, list[float]] = {}
    for run in runs:
        values.setdefault(run["model"], []).append(of(run))
    return statistics.fmean(statistics.fmean(found) for found in values.values())


def _asr(run: Row) -> float:
    return float(run["after"]["asr"]["value"])


def _drop(run: Row) -> float:
    return float(run["acc_drop"])


def _der(run: Row) -> float:
    return float(run["der"]["value"])
