"""``bezoar inspect``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from bezoar.commands.exit_codes import OK
from bezoar.commands.inputs import given_facts
from bezoar.commands.options import Common, Model
from bezoar.commands.outputs import (
    check_outputs,
    write_record,
)
from bezoar.screen import print_facts


@dataclass(frozen=True, kw_only=True)
class Inspect(Common, Model):
    """What is in this model file; nothing in it is executed.

    Attributes:
        model: a weights file, or a model.toml.
    """

    model: tyro.conf.Positional[Path]

    def run(self) -> int:
        """Prints what the file holds; with an architecture, also whether they fit together."""
        import msgspec

        from bezoar import intake

        check_outputs(self.json, inputs=(self.model,))
        if self.model.suffix.lower() == ".toml" or self.architecture:
            weights, description, notices = intake.check_fit(self.model, **given_facts(self))
            check_outputs(self.json, inputs=(weights.path,))
            fit = {"architecture": description.architecture, "notices": list(notices)}
        else:
            weights, fit = intake.read_weights(self.model), {}
        record = {"kind": "inspect", **msgspec.to_builtins(intake.facts(weights)), **fit}
        if record["nonfinite"]:
            record["warning"] = (
                f"NaN or infinite values in {len(record['nonfinite'])} of {record['tensors']} "
                "tensors; the network cannot work, and no other command takes it"
            )
        if not self.silent:
            print_facts(record)
        write_record(self.json, record)
        return OK
