"""``bezoar inspect``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from bezoar.commands.inputs import given_facts
from bezoar.commands.options import OK, Common, Model
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
            loaded = intake.load_model(self.model, device=self.device, **given_facts(self))
            weights, fits = loaded.weights, True
            check_outputs(self.json, inputs=(weights.path,))
        else:
            weights, fits = intake.read_weights(self.model), None
        record = {"kind": "inspect", **msgspec.to_builtins(intake.facts(weights))}
        if fits:
            record["architecture"] = loaded.description.architecture
            record["notices"] = [*record["notices"], *loaded.notices]
        write_record(self.json, record)
        if not self.silent:
            print_facts(record)
        return OK
