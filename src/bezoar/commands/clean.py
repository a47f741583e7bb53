"""``bezoar clean``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bezoar.commands.exit_codes import FOUND, OK
from bezoar.commands.inputs import check_public_options, load, open_public
from bezoar.commands.options import ModelMaybeOnImages, PublicImages
from bezoar.commands.outputs import (
    add_sources,
    check_outputs,
    command_line,
    every_output,
    write_record,
    write_report,
)
from bezoar.errors import InputError
from bezoar.screen import print_cost, print_scan, print_trials, progress_bar, say

if TYPE_CHECKING:
    from torch import nn

    from bezoar.intake import LoadedModel
    from bezoar.methods import Method


@dataclass(frozen=True, kw_only=True)
class Clean(ModelMaybeOnImages, PublicImages):
    """Cleaned weights and a report.

    Without --method the model is scanned first: nothing found leaves it untouched; where a class is
    suspected, several repairs are tried and the best is kept. Without --images, the weights are
    scanned, and what needs none is taken. A --method that needs nothing, or public images (--public
    or --generator), takes no --images; then accuracy is not measured.

    Exit code 0: done. 1: the repair costs too much accuracy, or is plainly ruined, and was not
    written. 2: input not usable, or an output not writable.

    Attributes:
        out: where the cleaned weights go: same keys, number formats and container as the input;
            for a purified model the ending chooses, .safetensors, .pt or .pth.
        export: also write the cleaned network to this .pt2 file, for torch.export.load.
        method: which method; see `bezoar methods`.
        scan_methods: who looks, before and after the repair.
        precaution: without --method, repair a model in which nothing was found, too; by the
            held-out images at most one point of accuracy may be lost.
        preset: published takes the paper's settings instead of ours.
        set: hyper-parameters as name=value, such as beta=2 recipe.epochs=10; where several values
            are taken, with commas between them.
        max_accuracy_drop: points of held-out accuracy, out of 100, that a repair may cost.
        force: write the repair even if it costs more.
        report: write the HTML report to this file; by default beside the output.
    """

    out: Path
    export: Path | None = None
    method: str = "auto"
    scan_methods: tuple[str, ...] = ("auto",)
    precaution: bool = False
    preset: Literal["default", "published"] = "default"
    set: tuple[str, ...] = ()
    max_accuracy_drop: float = 5.0
    force: bool = False
    report: Path | None = None

    def run(self) -> int:
        """Runs the repair."""
        from bezoar import intake, pipeline
        from bezoar.checks import input_of
        from bezoar.given import check_needs
        from bezoar.networks.purified import Purified

        report = self.report or self.out.with_name(f"{self.out.stem}.report.html")
        if not 0 <= self.max_accuracy_drop <= 100:
            raise InputError(
                f"--max-accuracy-drop is {self.max_accuracy_drop:g}; expected points from 0 to 100"
            )
        method = _method(self.method, self.preset, self.set)
        check_public_options(self)
        source = self.public_source
        check_needs(method, has_images=self.images is not None, has_public=source is not None)
        pipeline.find_witnesses(self.scan_methods)
        outputs = (self.out, self.export, report, self.json)
        loaded, images = load(self, outputs=outputs, inputs=() if source is None else (source,))
        before = loaded.classifier.network
        shape = input_of(loaded.classifier, images)
        purified = isinstance(before, Purified) or (method is not None and method.purifies)
        if purified:
            intake.check_purified_writable(self.out, loaded.weights)
            check_outputs(intake.source_beside(self.out), self.export, report, self.json)
        else:
            intake.check_ending(self.out, loaded.weights)
            intake.check_writable(self.out, loaded.weights)
        if self.export is not None:
            loaded.classifier.trace(shape)
            intake.check_exportable(before, shape, self.export, loaded.weights)
        public = open_public(self, shape=shape, device=loaded.classifier.device, outputs=outputs)
        with progress_bar(self.silent) as progress:
            repair = pipeline.clean(
                loaded.classifier,
                images,
                method=method,
                public=public,
                witnesses=self.scan_methods,
                seed=self.seed,
                max_accuracy_drop=self.max_accuracy_drop / 100,
                precaution=self.precaution,
                progress=progress,
            )
        record = repair.record | {"command": command_line(), "written": False, "forced": False}
        add_sources(record, loaded, self.images)
        if record["scan"] is not None:
            add_sources(record["scan"], loaded, self.images)
        if record["public"] is not None:
            record["public"]["source"] = source
        with every_output() as attempt:
            if not self.silent:
                with attempt():
                    _show(record)
            if record["accepted"] or self.force:
                with attempt():
                    self._write(loaded, repair.classifier.network, shape, record)
            if not self.silent:
                with attempt():
                    self._show_files(record)
            with attempt():
                write_record(self.json, record)
            with attempt():
                write_report(report, record, images, loaded, repair.evidence, repair.synthetic)
                if not self.silent:
                    say(f"Report: {report}")
        return OK if record["written"] else FOUND

    def _write(
        self,
        loaded: LoadedModel,
        network: nn.Module,
        shape: tuple[int, int, int],
        record: dict[str, Any],
    ) -> None:
        """Writes the repaired network, and enters into the record what is there, or why it is not.

        Raises:
            InputError: it cannot be written.
            OSError: likewise.
        """
        from bezoar import intake
        from bezoar.networks.purified import Purified

        output = {"file": str(self.out)}
        try:
            if isinstance(network, Purified):
                intake.write_purified(loaded.weights, network, self.out)
                output["source"] = str(intake.source_beside(self.out))
            else:
                intake.write_weights(loaded.weights, network.state_dict(), self.out)
            output["sha256"] = intake.read_weights(self.out).sha256
        except (InputError, OSError) as error:
            record["notices"].append(f"The repaired network could not be written: {error}")
            raise
        record |= {"output": output, "written": True, "forced": not record["accepted"]}
        if self.export is not None:
            intake.write_exported(network, shape, self.export)
            output["export"] = str(self.export)

    def _show_files(self, record: dict[str, Any]) -> None:
        """Where the weights are, and what belongs to them."""
        say(f"Weights: {self.out}" if record["written"] else "No weights were written.")
        for what in ("source", "export"):
            if what in record.get("output", {}):
                say(f"{what.capitalize()}: {record['output'][what]}")


def _show(record: dict[str, Any]) -> None:
    """What the scan found, what was tried, and what the repair is worth."""
    if record["scan"] is not None:
        print_scan(record["scan"])
    print_trials(record)
    for line in (*record["skipped"], record["outcome"]):
        say(line)
    told = record["scan"]["notices"] if record["scan"] else ()
    for note in record["notices"]:
        if note not in told:
            say(f"Note: {note}")
    print_cost(record)


def _method(
    name: str, preset: Literal["default", "published"], settings: tuple[str, ...]
) -> Method | None:
    from bezoar.methods.spelling import make_method

    if name == "auto":
        if settings or preset != "default":
            raise InputError("--set and --preset need a --method; see `bezoar methods`")
        return None
    return make_method(name, settings, published=preset == "published", separator=",")
