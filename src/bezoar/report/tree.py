"""Any JSON value as a nested list that can be read: settings, and what a method decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bezoar.report import fields, words

DEEPEST = 8  # levels that are shown; what lies deeper is in the record only
MOST = 200  # entries of one level


@dataclass(frozen=True)
class Node:
    """A name with its value in words, or with what it holds."""

    name: str
    text: str = ""
    children: list[Node] = field(default_factory=list)


def read_tree(value: Any) -> list[Node]:
    """The entries of a mapping or a list; nothing for anything else.

    >>> [(node.name, node.text) for node in read_tree({"max_drop": 0.03, "grid": [1, 2]})]
    [('max_drop', '0.03'), ('grid', '1, 2')]
    """
    return _entries(value, DEEPEST)


def _entries(value: Any, left: int) -> list[Node]:
    pairs: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        pairs = [(fields.text(key, 120) or "unnamed", item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        pairs = [(f"{place}", item) for place, item in enumerate(value, 1)]
    found = [_node(name, item, left) for name, item in pairs[:MOST]]
    if len(pairs) > MOST:
        found.append(Node("…", f"and {len(pairs) - MOST:,} more, in the record only"))
    return found


def _node(name: str, value: Any, left: int) -> Node:
    nested = isinstance(value, Mapping | list | tuple)
    if not nested or not value:
        return Node(name, _leaf(value))
    if isinstance(value, list | tuple) and not any(
        isinstance(item, Mapping | list | tuple) for item in value
    ):
        parts = [_leaf(item) for item in value]
        if sum(map(len, parts)) <= 160:
            return Node(name, ", ".join(parts))
    if left <= 1:
        return Node(name, "nested more deeply, see the record")
    return Node(name, children=_entries(value, left - 1))


def _leaf(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping | list | tuple):
        return "empty"
    if isinstance(value, int | float):
        number = fields.number(value)
        if number is None:
            return "not a number"
        text = f"{number:.0f}" if number == int(number) and abs(number) < 1e7 else f"{number:.5g}"
        return text.replace("-", words.MINUS)
    return fields.text(value, 600) or "empty"
