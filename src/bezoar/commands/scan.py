"""``bezoar scan``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from bezoar.commands.exit_codes import FOUND, OK, UNUSABLE
from bezoar.commands.inputs import given_facts, load
from bezoar.commands.options import (
    Common,
    ManyModels,
    Model,
    ModelMaybeOnImages,
    Reading,
)
from bezoar.commands.outputs import (
    add_sources,
    check_outputs,
    command_line,
    every_output,
    write_record,
    write_report,
)
from bezoar.errors import InputError
from bezoar.screen import complain_of_models, print_fleet, print_scan, progress_bar, say

if TYPE_CHECKING:
    from bezoar.executors import Executor

TIMEOUT_S = 3600.0  # for each model of a manifest: one that hangs does not hold the rest for ever


@dataclass(frozen=True, kw_only=True)
class Scan(Common, Model, Reading, ManyModels):
    """Verdict, suspected classes and evidence, for one model or for each of a manifest.

    Exit code 0: nothing found. 1: suspicious or found (--fail-on chooses). 2: input not usable, or
    an output not writable; with a manifest, nothing that --fail-on counts, and a model that could
    not be used or whose record could not be written.

    Attributes:
        model: a model.toml, or a weights file with the facts as options.
        images: a folder with one sub-folder per class, a flat folder, a parquet file or an .npz;
            with a manifest, for the rows that name none. Without any, the weights are looked at.
        methods: who looks, see `bezoar methods`; auto takes several that were measured together.
        audit: the model claims to be cleaned: unlearn a copy, and see whether a backdoor that was
            only hidden comes up.
        self_test: plant a patch in a copy of the model, and show whether this scan finds it and
            cleaning removes it; needs labelled images and takes as long as a `clean`.
        report: write the HTML report to this file.
        sarif: write the results as SARIF 2.1.0 to this file; - is standard output.
        fail_on: the mildest verdict that gives exit code 1.
    """

    model: tyro.conf.Positional[Path | None] = None
    images: str | None = None
    methods: tuple[str, ...] = ("auto",)
    audit: bool = False
    self_test: bool = False
    report: Path | None = None
    sarif: str | None = None
    fail_on: Literal["suspicious", "found", "never"] = "suspicious"

    @property
    def silent(self) -> bool:
        """Whether the screen is left alone, because nobody wants it or data goes there."""
        return super().silent or self.sarif == "-"

    def run(self) -> int:
        """Runs the scan."""
        if self.json == self.sarif == "-":
            raise InputError(
                "--json and --sarif both want standard output; give one of them a file"
            )
        if self.manifest is not None:
            return self._scan_many(self.manifest)
        return self._scan_one(self._one_model())

    def _scan_one(self, one: ModelMaybeOnImages) -> int:
        from bezoar import audit, pipeline, self_test
        from bezoar.fleet_summary import finding_entry

        # refuses an unknown one before any work
        pipeline.find_witnesses(self.methods, has_images=self.images is not None)
        loaded, images = load(one, outputs=(self.report, self.json, self.sarif))
        if self.self_test and images is not None:
            self_test.parts(images, seed=self.seed)  # refuses too few before any work
        with progress_bar(self.silent) as progress:
            how: dict[str, Any] = {
                "seed": self.seed,
                "witnesses": self.methods,
                "progress": progress,
            }
            if self.audit and images is not None:
                finding = audit.audit(loaded.classifier, images, **how)
            else:
                finding = pipeline.scan(loaded.classifier, images, **how)
            record = finding.record | {"command": command_line()}
            add_sources(record, loaded, self.images)
            if self.self_test and images is not None:
                try:
                    record["self_test"] = self_test.self_test(
                        loaded.classifier, images, avoid=finding.suspects, **how
                    )
                except InputError as error:  # the verdict stands without it
                    record["notices"].append(f"The self-test could not be made: {error}")

        with every_output() as attempt:
            if not self.silent:
                with attempt():
                    print_scan(record)
            with attempt():
                write_record(self.json, record)
            with attempt():
                self._write_sarif([finding_entry(record)])
            if self.report:
                with attempt():
                    write_report(self.report, record, images, loaded, finding.evidence)
                    if not self.silent:
                        say(f"Report: {self.report}")
        return exit_code([record["verdict"]], self.fail_on)

    def _one_model(self) -> ModelMaybeOnImages:
        """The command as one about a single model."""
        if self.model is None:
            raise InputError("no model is given; give one, or many as --manifest")
        for field in dataclasses.fields(ManyModels):
            if getattr(self, field.name) is not None:
                option = field.name.replace("_", "-")
                raise InputError(f"--{option} goes with --manifest; leave it out for one model")
        if self.images is None and (self.audit or self.self_test):
            what = "an audit" if self.audit else "a self-test"
            raise InputError(f"{what} needs clean images of the task; give them as --images")
        names = (field.name for field in dataclasses.fields(ModelMaybeOnImages))
        own: dict[str, Any] = {name: getattr(self, name) for name in names}
        return ModelMaybeOnImages(**own)

    def _scan_many(self, manifest: Path) -> int:
        from bezoar.fleet import ScanOptions, scan_models
        from bezoar.fleet_summary import summary_csv, verdict_of
        from bezoar.manifest import read_manifest
        from bezoar.records import write_text

        if self.self_test:
            raise InputError("--self-test is about one model; leave it out with --manifest")
        for name in ("model", "report"):
            if getattr(self, name) is not None:
                shown = "a model" if name == "model" else "--report"
                raise InputError(f"{shown} is given beside --manifest; leave one of them out")
        options = ScanOptions(
            methods=self.methods,
            audit=self.audit,
            seed=self.seed,
            device=self.device,
            resize=self.resize,
            limit=self.limit,
        )
        executor = self._executor()
        rows = read_manifest(manifest, images=self.images, facts=given_facts(self))
        read = {file for row in rows for file in (row.path, *row.files.values())}
        check_outputs(self.json, self.sarif, self.summary, inputs=(manifest, *read))
        with progress_bar(self.silent) as progress:
            summary = scan_models(
                rows,
                options,
                executor,
                out=self.out,
                finished=lambda _name, done, total: progress(
                    f"models ({done} of {total})", done / total
                ),
                progress=lambda name, what, share: progress(f"in work ({name}: {what})", share),
            )
        models = summary["models"]

        with every_output() as attempt:
            if not self.silent:
                with attempt():
                    print_fleet(summary)
            with attempt():
                complain_of_models(summary)  # quiet or not: an exit code of 2 needs a reason
            with attempt():
                write_record(self.json, summary | {"command": command_line()})
            with attempt():
                self._write_sarif(models)
            if self.summary is not None:
                with attempt():
                    write_text(self.summary, summary_csv(models))
        code = exit_code(map(verdict_of, models), self.fail_on)
        lost = any("unwritten" in model for model in models)
        return UNUSABLE if lost and code == OK else code

    def _write_sarif(self, entries: Sequence[Mapping[str, Any]]) -> None:
        from bezoar.sarif import sarif_log

        write_record(self.sarif, sarif_log(entries, base=Path.cwd(), command=command_line()))

    def _executor(self) -> Executor:
        from bezoar.executors import make_executor

        for name in ("threads", "timeout", "memory_limit"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"--{name.replace('_', '-')} is {value}; expected more than 0")
        where = self.executor or "local"
        limited = where != "here"  # which cannot end what it runs
        return make_executor(
            where,
            cpus_per_task=1 if self.threads is None else self.threads,
            gpus_per_task=self.gpus or 0.0,
            timeout_s=_finite(TIMEOUT_S if self.timeout is None and limited else self.timeout),
            memory_limit=self._memory_limit(where),
            reuse=True,
        )

    def _memory_limit(self, where: str) -> int | None:
        """In bytes. Half of this machine leaves the others the rest; nodes watch over their own."""
        from bezoar.executors.machine_memory import machine_memory

        if self.memory_limit is not None:
            given = _finite(self.memory_limit)
            return None if given is None else int(given * 2**30)
        there = machine_memory() if where.startswith("local") else None
        return None if there is None else there // 2


def exit_code(verdicts: Iterable[str], fail_on: str) -> int:
    """What was found comes first, so that a model that cannot be used never hides it."""
    from bezoar.fleet_summary import NOT_USABLE

    given = set(verdicts)
    if given & set(_FAILING[fail_on]):
        return FOUND
    return UNUSABLE if NOT_USABLE in given else OK


def _finite(limit: float | None) -> float | None:
    """``inf`` is how a user takes a limit away."""
    return None if limit is None or math.isinf(limit) else limit


_FAILING: dict[str, tuple[str, ...]] = {
    "suspicious": ("suspicious", "backdoor found"),
    "found": ("backdoor found",),
    "never": (),
}
