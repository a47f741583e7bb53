"""``bezoar methods`` and ``bezoar attacks``: what is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tyro

from bezoar.commands.exit_codes import OK
from bezoar.commands.outputs import write_record
from bezoar.screen import say


@dataclass(frozen=True, kw_only=True)
class Methods:
    """The methods that are there: paper, data needed, layers supported, cost.

    Attributes:
        name: show the hyper-parameters of this one.
        json: write the list as JSON to this file; - is standard output.
        quiet: no list on the screen.
    """

    name: tyro.conf.Positional[str | None] = None
    json: str | None = None
    quiet: bool = False

    def run(self) -> int:
        """Lists the methods."""
        from bezoar.methods import methods
        from bezoar.methods.spelling import flat

        names = [self.name] if self.name else methods.names()
        rows: list[dict[str, Any]] = []
        for name in names:
            kind = methods.get(name)
            rows.append(
                {
                    "name": name,
                    "title": kind.title,
                    "paper": kind.paper,
                    "needs": kind.needs,
                    "layers": kind.layers,
                    "cost": kind.cost,
                    "finds the target class": kind.inspects,
                    "configuration": kind().configuration(),
                }
            )
        write_record(self.json, {"kind": "methods", "methods": rows})
        if not (self.quiet or self.json == "-"):
            for row in rows:
                say(f"{row['name']}: {row['title']}")
                for key in ("paper", "needs", "layers", "cost", "finds the target class"):
                    value = row[key]
                    shown = ("yes" if value else "no") if isinstance(value, bool) else value
                    say(f"    {key}: {shown}")
                if self.name:
                    say("    hyper-parameters (--set name=value):")
                    for key, value in flat(row["configuration"]):
                        say(f"        {key} = {value}")
        return OK


@dataclass(frozen=True, kw_only=True)
class Attacks:
    """The attacks that are there: paper, what the attacker controls, parameters.

    Attributes:
        name: show this one only.
        json: write the list as JSON to this file; - is standard output.
        quiet: no list on the screen.
    """

    name: tyro.conf.Positional[str | None] = None
    json: str | None = None
    quiet: bool = False

    def run(self) -> int:
        """Lists the attacks."""
        import msgspec

        from bezoar.attacks import attacks

        rows: list[dict[str, Any]] = []
        for name in [self.name] if self.name else attacks.names():
            kind = attacks.get(name)
            rows.append(
                {
                    "name": name,
                    "title": kind.title,
                    "paper": kind.paper,
                    "attacker controls": kind.controls,
                    "labels": "clean" if kind.clean_label else "changed",
                    "modes": list(kind.modes),
                    "needs a network trained on clean images": kind.needs_surrogate,
                    "parameters": {
                        field.name: None
                        if field.default is msgspec.NODEFAULT
                        else msgspec.to_builtins(field.default)
                        for field in msgspec.structs.fields(kind)
                    },
                }
            )
        write_record(self.json, {"kind": "attacks", "attacks": rows})
        if self.quiet or self.json == "-":
            return OK
        for row in rows:
            say(f"{row['name']}: {row['title']}")
            for key in ("paper", "attacker controls", "labels", "modes"):
                if row[key]:
                    shown = row[key] if isinstance(row[key], str) else ", ".join(row[key])
                    say(f"    {key}: {shown}")
            if row["needs a network trained on clean images"]:
                say("    needs a network trained on clean images")
            values = (f"{key}={_shown(value)}" for key, value in row["parameters"].items())
            say(f"    parameters: {', '.join(values)}")
        return OK


def _shown(value: Any) -> str:
    """A value as it is written in an attack's text."""
    if value is None:
        return "…"
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)
