"""What the commands show on the screen: progress, the facts of a file, the verdict of a scan.

All of it goes through ``say``, ``complain``, ``plain_console`` or ``progress_bar``, which make the
text of strangers ``visible``.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from bezoar.visible import visible
from bezoar.wording import lost_in_words, repair_in_words, signs_left

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from bezoar.training import Progress

MOST_STATISTICS = 2  # of witnesses, whose values are shown side by side
NO_SCREEN = 10_000  # columns where nobody sees a width: a pipe gets whole lines and whole cells


def say(text: str) -> None:
    """One line on the standard output."""
    print(visible(text))


def complain(reason: str) -> None:
    """What went wrong, on standard error; further lines of it stand back behind the first."""
    first, *rest = map(visible, reason.split("\n"))
    for line in (f"bezoar: {first}", *(f"  {one}" for one in rest)):
        print(line, file=sys.stderr)


def plain_console() -> Console:
    """The standard output for text and tables as they are; the caller's words are no markup."""
    from rich.console import Console

    class PlainConsole(Console):
        def render_str(self, text: str, **how: Any) -> Text:  # rich calls it for every text
            return super().render_str(visible(text), **how)

    seen = sys.stdout.isatty() or "COLUMNS" in os.environ
    width = None if seen else NO_SCREEN
    return PlainConsole(highlight=False, markup=False, emoji=False, width=width)


@contextlib.contextmanager
def progress_bar(quiet: bool) -> Iterator[Progress]:
    """A progress bar on standard error, or nothing where nobody would see it move."""
    if quiet or not sys.stderr.isatty():
        yield lambda _what, _share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    what_it_does = TextColumn("{task.description}", markup=False)  # which may name a file
    columns = (what_it_does, BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def show(what: str, share: float) -> None:
            what = visible(what)
            name = what.partition(" (")[0]  # what is in brackets changes, such as losses
            if name not in tasks:
                tasks[name] = bar.add_task(what, total=1.0)
            bar.update(tasks[name], completed=share, description=what)

        yield show


def print_facts(record: dict[str, Any]) -> None:
    """One line for each fact that there is."""
    for key, value in record.items():
        if key == "kind" or value in (None, "", (), [], {}):
            continue
        if isinstance(value, dict):
            value = _in_a_row(value)
        elif isinstance(value, list | tuple):
            value = ", ".join(map(_in_a_row, value))
        say(f"{key.replace('_', ' ')}: {value}")


def _in_a_row(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {item}" for name, item in value.items())
    return str(value)


def print_scan(record: dict[str, Any]) -> None:
    """The verdict, the five most suspicious classes, and the notices."""
    from rich.table import Table

    console = plain_console()
    styles = {"backdoor found": "bold red", "suspicious": "bold yellow", "nothing found": "bold"}
    console.print(record["verdict"].upper(), style=styles[record["verdict"]])
    console.print(record["sentence"])
    table = Table(box=None, pad_edge=False)
    columns = _scan_columns(record)
    for name in columns:
        table.add_column(name, justify="left" if name == "class" else "right")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    console.print(table)
    if "audit" in record:
        console.print(f"Audit: {record['audit']['outcome']}. {record['audit']['sentence']}")
    if "self_test" in record:
        console.print(f"Self-test: {record['self_test']['sentence']}")
    for notice in record["notices"]:
        console.print(f"Note: {notice}")


def print_synthesis(record: dict[str, Any]) -> None:
    """How many classes got images, what the images are worth, and the notices."""
    console = plain_console()
    console.print(record["sentence"], style="bold")
    console.print(record["limits"])
    for notice in record["notices"]:
        console.print(f"Note: {notice}")


def print_trials(record: dict[str, Any]) -> None:
    """The repairs that were tried, where several were, with a mark at the one that was kept."""
    if not record.get("trials"):
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("tried")
    lost = lost_in_words(record).lower()
    for name in (lost, "triggers carry", "signs seen", "seconds"):
        table.add_column(name, justify="right")
    suspected = bool(record["scan"]["suspects"])
    for number, trial in enumerate(record["trials"]):
        name = repair_in_words(trial["steps"], trial["share"])
        name += " (kept)" * (number == record["kept"])
        left = trial["survival"]
        if left is None:
            table.add_row(f"{name}: {trial['failure']}")
            continue
        table.add_row(
            name,
            f"{round(100 * trial['accuracy_drop'], 1) + 0.0:.1f}",  # -0.0 is no loss
            "–" if left["worst"] is None else f"{100 * left['worst']:.0f} %",
            signs_left(left["removed"], trial["returned"], suspected=suspected),
            f"{trial['seconds']:.0f}",
        )
    plain_console().print(table)


def print_cost(record: dict[str, Any]) -> None:
    """What a purifier in front of the network costs, where the record has it."""
    cost = record.get("repair", {}).get("cost")
    if cost:
        say(
            f"Cost per image: {cost['milliseconds per image']:.3g} ms "
            f"({cost['milliseconds per image without']:.3g} ms without the purifier of "
            f"{cost['purifier parameters']:,} parameters), in batches of {cost['batch']}"
        )


def _scan_columns(record: dict[str, Any]) -> dict[str, list[str]]:
    """The five most suspicious classes: one column for what each witness saw of them."""
    shown = record["ranking"][:5]
    witnesses = [item["statistic"] for item in record["evidence"]]
    columns = {"class": [record["model"]["classes"][k] for k in shown]}
    if len(witnesses) > MOST_STATISTICS:  # so many units side by side say less than p-values
        for statistic in witnesses:
            columns[statistic["method"]] = [_p(statistic["p_values"][k]) for k in shown]
        columns["together: p"] = [_p(record["p_values"][k]) for k in shown]
        return columns
    for statistic in witnesses:
        heading = statistic["value"]
        if len(witnesses) > 1:
            heading = f"{statistic['method']}: {heading}"
        if statistic["unit"]:
            heading += f" ({statistic['unit']})"
        values = (statistic["values"][k] for k in shown)
        columns[heading] = [f"{v:.3f}" if math.isfinite(v) else statistic["absent"] for v in values]
    if len(witnesses) == 1:  # scores of several witnesses cannot be compared
        scores = (witnesses[0]["scores"][k] for k in shown)
        columns["score"] = [f"{score:.2f}" if math.isfinite(score) else "-" for score in scores]
    columns["p"] = [_p(record["p_values"][k]) for k in shown]
    return columns


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 1e-4 else "< 0.0001"


def print_rate(name: str, rate: Mapping[str, Any]) -> None:
    """A share with its interval, from its record."""
    say(
        f"{name}  {100 * rate['value']:5.1f} %   (95 %: {100 * rate['low']:.1f} to "
        f"{100 * rate['high']:.1f}, {rate['count']} images)"
    )


def print_model(record: dict[str, Any]) -> None:
    """The scores of a model that was made, and of its clean twin."""
    for what, scores in (("", record["scores"]), ("clean twin ", record["clean twin"] or {})):
        for name in ("acc", "asr", "ra"):
            if name in scores:
                print_rate(f"{what}{name.upper()}", scores[name])
    if record["status"] == "weak":
        say("Note: the ASR is below 90 %; do not count this model as a backdoored one.")
    if record["status"] == "natural":
        say("Note: the clean twin obeys the trigger too; it does not show a backdoor.")
    for note in (*record["planting"].get("notes", ()), *record["images"]["notices"]):
        say(f"Note: {note}")


def print_pool(entries: list[dict[str, Any]], failed: dict[str, str]) -> None:
    """One line a model."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("model", "half", "status", "ACC", "ASR", "twin ASR"):
        table.add_column(name, justify="right" if name.isupper() or "ASR" in name else "left")
    for entry in entries:
        rates = ("-" if entry[key] is None else f"{100 * entry[key]:.1f}" for key in _RATES)
        table.add_row(entry["name"], entry["half"], entry["status"], *rates)
    console = plain_console()
    console.print(table)
    for name, reason in failed.items():
        console.print(f"failed: {name}: {reason}")


_RATES = ("acc", "asr", "twin_asr")


def print_fleet(summary: dict[str, Any]) -> None:
    """The scan of a manifest: a line for each model, the notices, and the sum."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("model", "verdict", "suspects", "p", "seconds"):
        table.add_column(name, justify="right" if name in ("p", "seconds") else "left")
    for model in summary["models"]:
        seconds = f"{model['seconds']:.1f}"
        if "failed" in model:
            table.add_row(model["model"], "not usable", "-", "-", seconds)
            continue
        p = _p(model["p"])
        suspects = ", ".join(model["suspect_names"]) or "-"
        table.add_row(model["model"], model["verdict"], suspects, p, seconds)
    console = plain_console()
    console.print(table)
    for model in summary["models"]:
        for notice in model.get("notices", ()):
            console.print(f"{model['model']} (line {model['line']}): Note: {notice}")
    told = ", ".join(f"{count} {name}" for name, count in summary["counts"].items())
    several = "" if len(summary["models"]) == 1 else "s"
    console.print(f"{len(summary['models'])} model{several}: {told}.")
    blind = sum(model["images"] is None for model in summary["models"])
    if blind:
        console.print(
            f"Without images: {blind}; nothing is recovered then, and none is more than suspicious."
        )
    before = sum(model.get("scanned") == "before" for model in summary["models"])
    if before:
        console.print(f"Scanned by an earlier call: {before}.")


def complain_of_models(summary: dict[str, Any]) -> None:
    """Which models of a manifest could not be used, or have no record, and why."""
    for model in summary["models"]:
        reason = model["failed"]["reason"] if "failed" in model else model.get("unwritten")
        if reason is not None:
            complain(f"{model['model']} (line {model['line']}): {reason}")


def print_bench(summary: dict[str, Any], planned: int, out: str) -> None:
    """How many runs have a result, and what went wrong with the others."""
    failed, unwritten = summary["failed"], summary["unwritten"]
    say(
        f"{summary['done']} of {planned} runs are done and {len(failed)} failed; this call ran "
        f"{summary['ran']} of them in {summary['seconds']:.0f} s."
    )
    for reason, keys in _by_reason(failed).items():
        shown = ", ".join(keys[:3]) + (" ..." if len(keys) > 3 else "")
        say(f"failed: {len(keys)} x {reason} ({shown})")
    for key in summary["renewed"]:
        say(f"Note: the file of run {key} was damaged; the run was done again.")
    for key, reason in unwritten.items():
        say(f"not written: {key}: {reason}")
    say(f"Results: {out}")


def _by_reason(failed: dict[str, str]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for key, reason in failed.items():
        reasons.setdefault(reason, []).append(key)
    return reasons
