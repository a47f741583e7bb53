"""``bezoar sift``."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from bezoar.commands.exit_codes import FOUND, OK
from bezoar.commands.inputs import load, open_images
from bezoar.commands.options import ModelOnImages
from bezoar.commands.outputs import (
    add_sources,
    check_outputs,
    command_line,
    every_output,
    write_record,
)
from bezoar.screen import plain_console, progress_bar, say
from bezoar.spreadsheet import inert

if TYPE_CHECKING:
    from bezoar.images import ImageSet
    from bezoar.sifting import Sifting

SHOWN = 10  # rows on the screen


@dataclass(frozen=True, kw_only=True)
class Sift(ModelOnImages):
    """Which images of a heap carry a trigger for this model.

    Exit code 0: no more images are flagged than clean ones would be. 1: more are (--fail-on
    chooses). 2: input not usable, or an output not writable.

    Attributes:
        suspects: the images to sift: a folder, a parquet file or an .npz; labels are not used.
        level: the share of clean images that may be flagged.
        out: write a CSV file with one row for each image of the heap.
        fail_on: excess gives exit code 1 when more are flagged than clean images give.
    """

    suspects: tyro.conf.Positional[str]
    level: float = 0.05
    out: Path | None = None
    fail_on: Literal["excess", "never"] = "excess"

    def run(self) -> int:
        """Sifts the images."""
        from bezoar import sifting
        from bezoar.records import write_text

        check_outputs(self.out, self.json, inputs=(self.suspects,))
        loaded, clean = load(self, outputs=(self.out, self.json))
        suspects = open_images(self, self.suspects, loaded, classes=None)
        with progress_bar(self.silent) as progress:
            sifting_ = sifting.sift(
                loaded.classifier,
                suspects,
                clean,
                seed=self.seed,
                level=self.level,
                progress=progress,
            )
        record = sifting_.record | {"command": command_line()}
        add_sources(record, loaded, self.images)
        record["suspects"]["source"] = self.suspects
        with every_output() as attempt:
            if not self.silent:
                with attempt():
                    print_sifting(record)
            with attempt():
                write_record(self.json, record)
            if self.out:
                with attempt():
                    write_text(self.out, table(sifting_, suspects, loaded.classifier.classes))
                    if not self.silent:
                        say(f"All images: {self.out}")
        return FOUND if record["more_than_clean"] and self.fail_on == "excess" else OK


def table(sifting: Sifting, suspects: ImageSet, classes: tuple[str, ...]) -> str:
    """CSV with one row for each image, in the order of the source."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["image", "answer", "class", "score", "p", "flagged"])
    flagged = set(sifting.flagged)
    for index, (answer, score, p) in enumerate(
        zip(
            sifting.answers.tolist(),
            sifting.scores.tolist(),
            sifting.p_values.tolist(),
            strict=True,
        )
    ):
        name = suspects.names[index] if suspects.names else index
        row = [inert(name), answer, inert(classes[answer]), f"{score:.6g}", f"{p:.6g}"]
        rows.writerow([*row, int(index in flagged)])
    return text.getvalue()


def print_sifting(record: dict[str, Any]) -> None:
    """What is flagged, the first of it, and what that does not say."""
    from rich.table import Table

    console = plain_console()
    console.print(record["sentence"], style="bold" if record["more_than_clean"] else None)
    if record["flagged"]:
        table = Table(box=None, pad_edge=False)
        table.add_column("image")
        table.add_column("answer")
        table.add_column("score", justify="right")
        table.add_column("p", justify="right")
        for row in record["flagged"][:SHOWN]:
            table.add_row(
                str(row["index"] if row["name"] is None else row["name"]),
                record["model"]["classes"][row["answer"]],
                f"{row['score']:.2f}",
                f"{row['p']:.4f}",
            )
        console.print(table)
        if len(record["flagged"]) > SHOWN:
            console.print(f"and {len(record['flagged']) - SHOWN} more")
    console.print(record["limits"])
    for notice in record["notices"]:
        console.print(f"Note: {notice}")
