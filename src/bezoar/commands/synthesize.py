"""``bezoar synthesize``."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bezoar.commands.exit_codes import OK
from bezoar.commands.inputs import load_model
from bezoar.commands.options import OneModel
from bezoar.commands.outputs import (
    add_sources,
    command_line,
    every_output,
    write_page,
    write_record,
)
from bezoar.errors import InputError
from bezoar.screen import print_synthesis, progress_bar, say

if TYPE_CHECKING:
    from bezoar.images import ImageSet


@dataclass(frozen=True, kw_only=True)
class Synthesize(OneModel):
    """Images that a network takes for its classes, made without any data.

    A generator learns from the network alone; the report shows of each class the images that the
    network is surest of. They show what excites the network, and are no proof of anything.

    Exit code 0: done. 2: input not usable, or an output not writable.

    Attributes:
        out: where the images go: an .npz that --images of other commands takes, with the network's
            answers as labels.
        count: how many images are made.
        per_class: how many of each class the report shows.
        steps: how long the generator learns.
        report: write the HTML report to this file; by default beside the output.
    """

    out: Path
    count: int = 1024
    per_class: int = 8
    steps: int = 300
    report: Path | None = None

    def run(self) -> int:
        """Makes the images."""
        from bezoar import scanning
        from bezoar.checks import check_runs
        from bezoar.methods.synthesis import Synthesis
        from bezoar.methods.synthesized import synthesize
        from bezoar.records import write_bytes
        from bezoar.report.contact_sheet import check_per_class, contact_sheet

        if self.out.suffix.lower() != ".npz":
            raise InputError(
                f"--out is {self.out}; expected a name that ends in .npz, for the images; the page "
                "goes beside it, or to --report"
            )
        check_per_class(self.per_class)
        settings = Synthesis(steps=self.steps)
        report = self.report or self.out.with_name(f"{self.out.stem}.report.html")
        loaded = load_model(self, outputs=(self.out, report, self.json))
        classifier = loaded.classifier
        check_runs(classifier, None)
        with progress_bar(self.silent) as progress:
            made = synthesize(classifier, settings, self.count, seed=self.seed, progress=progress)
        record = scanning.describe(classifier, None, self.seed) | {
            "kind": "synthesize",
            **made.record,
            "command": command_line(),
            "output": {"file": str(self.out)},
        }
        add_sources(record, loaded, None)
        sheet = contact_sheet(classifier, made.images, per_class=self.per_class)
        with every_output() as attempt:
            if not self.silent:
                with attempt():
                    print_synthesis(record)
            with attempt():
                write_bytes(self.out, archive(made.images))
                if not self.silent:
                    say(f"Images: {self.out}")
            with attempt():
                write_record(self.json, record)
            with attempt():
                write_page(report, record, sheet=sheet)
                if not self.silent:
                    say(f"Report: {report}")
        return OK


def archive(images: ImageSet) -> bytes:
    """An .npz with ``images``, uint8 NCHW, and ``labels``, as ``ImageSet.from_npz`` reads it."""
    import numpy as np

    content = io.BytesIO()
    labels = images.require_labels("the archive").cpu().numpy()
    np.savez_compressed(content, images=images.images.cpu().numpy(), labels=labels)
    return content.getvalue()
