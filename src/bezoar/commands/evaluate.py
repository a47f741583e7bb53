"""``bezoar evaluate``."""

from __future__ import annotations

from dataclasses import dataclass

from bezoar.commands.exit_codes import OK
from bezoar.commands.inputs import load
from bezoar.commands.options import ModelOnImages
from bezoar.commands.outputs import add_sources, command_line, every_output, write_record
from bezoar.screen import print_rate


@dataclass(frozen=True, kw_only=True)
class Evaluate(ModelOnImages):
    """ACC, ASR and RA when the trigger is known.

    Attributes:
        trigger: the attack and its parameters, such as bad-nets:target=3,size=4 or
            stored-pattern:file=trigger.npy,target=5; or the trigger.safetensors that
            `bezoar attack` wrote beside a model.
    """

    trigger: str

    def run(self) -> int:
        """Measures the model."""
        from bezoar.attacks import parse_attack
        from bezoar.evaluation import evaluate
        from bezoar.scanning import describe

        attack = parse_attack(self.trigger)
        loaded, images = load(self, outputs=(self.json,))
        scores = evaluate(loaded.classifier, images, attack)
        record = describe(loaded.classifier, images, self.seed) | {
            "kind": "evaluate",
            "attack": repr(attack),
            "scores": scores.as_record(),
            "command": command_line(),
        }
        add_sources(record, loaded, self.images)
        with every_output() as attempt:
            if not self.silent:
                with attempt():
                    for name, rate in scores.intervals.items():
                        print_rate(name.upper(), rate.as_record())
            with attempt():
                write_record(self.json, record)
        return OK
