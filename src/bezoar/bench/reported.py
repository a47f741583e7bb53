"""What papers and official code report, beside what was measured here."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import msgspec

from bezoar.records import read_toml

_FILE = Path(__file__).parents[1] / "data" / "reported.toml"


class Reported(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One published result; shares in [0, 1].

    Attributes:
        method: its name here.
        attack: the attack's name here.
        data: the data set's name here.
        network: their architecture, in words.
        images: their clean images.
        acc: before and after.
        asr: before and after.
        source: where it was read, and what is counted differently there.
    """

    method: str
    attack: str
    data: str
    network: str
    images: int
    acc: tuple[float, float]
    asr: tuple[float, float]
    source: str


@functools.cache
def reported() -> tuple[Reported, ...]:
    """All that is known."""
    return msgspec.convert(read_toml(_FILE)["reported"], tuple[Reported, ...])


def reported_for(method: str, attack: str | None, data: str) -> list[dict[str, Any]]:
    """The published results for a method against an attack on a data set, as plain values."""
    return [
        msgspec.to_builtins(one)
        for one in reported()
        if (one.method, one.attack, one.data) == (method, attack, data)
    ]
