"""What universal patterns did before and after a repair, in a sentence for the page.

A method that repairs by such patterns (I-BAU) looks for a fresh one before the first round and
after each. Its record has for each the share of answers that it changes (``changed``), the class
that most of these go to (``suspected_target``), and the share of these that do (``target_share``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bezoar.report import fields, words
from bezoar.report.charts import Share


def rounds_in_words(record: Any, names: Sequence[Any]) -> str:
    """What the first and the last pattern did; nothing where the record does not say it.

    Args:
        record: the rounds of a method.
        names: of the classes.
    """
    rounds = list(map(fields.mapping, fields.items(record)))
    first = _told(rounds[0], names) if rounds else ""
    last = _told(rounds[-1], names) if len(rounds) > 1 else ""
    if not first:
        return ""
    told = f"Before the repair, one pattern, the same for all images, changed {first}."
    return told + (f" After the last round, a fresh one changed {last}." if last else "")


def _told(item: Mapping[str, Any], names: Sequence[Any]) -> str:
    changed, led = Share.read(item.get("changed")), fields.number(item.get("target_share"))
    target = fields.index(item.get("suspected_target"))
    if changed.value is None:
        return ""
    told = f"{changed.words} of the answers"
    if target is None or led is None:
        return told
    name = fields.name_of(names, target)
    called = name if name.startswith("class ") else f"class {name}"
    return f"{told}, {words.percent(led)} of these to {called}"
