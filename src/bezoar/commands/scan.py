"""``bezoar scan``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from bezoar.commands.inputs import given_facts, load
from bezoar.commands.options import (
    FOUND,
    OK,
    UNUSABLE,
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
    write_record,
    write_report,
)
from bezoar.errors import InputError
from bezoar.screen import print_fleet, print_scan, progress_bar

if TYPE_CHECKING:
    from bezoar.executors import Executor


@dataclass(frozen=True, kw_only=True)
class Scan(Common, Model, Reading, ManyModels):
    """Verdict, suspected classes and evidence, for one model or for each of a manifest.

    Exit code 0: nothing found. 1: suspicious or found (--fail-on chooses). 2: input not usable;
    with a manifest, nothing was found and a model could not be used.

    Attributes:
        model: a model.toml, or a weights file with the facts as options.
        images: a folder with one sub-folder per class, a flat folder, a parquet file or an .npz;
            with a manifest, for the rows that name none. Without any, the weights are looked at.
        methods: who looks, see `bezoar methods`; auto takes several that were measured together.
        audit: the model claims to be cleaned: unlearn a copy, and see whether a backdoor that was
            only hidden comes up.
        report: write the HTML report to this file.
        fail_on: the mildest verdict that gives exit code 1.
    """

    model: tyro.conf.Positional[Path | None] = None
    images: str | None = None
    methods: tuple[str, ...] = ("auto",)
    audit: bool = False
    report: Path | None = None
    fail_on: Literal["suspicious", "found", "never"] = "suspicious"

    def run(self) -> int:
        """Runs the scan."""
        if self.manifest is not None:
            return self._scan_many(self.manifest)
        return self._scan_one(self._one_model())

    def _scan_one(self, one: ModelMaybeOnImages) -> int:
        from bezoar import audit, pipeline

        # refuses an unknown one before any work
        pipeline.find_witnesses(self.methods, has_images=self.images is not None)
        loaded, images = load(one, outputs=(self.report, self.json))
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
        if self.report:
            write_report(self.report, record, images, loaded, finding.evidence)
        write_record(self.json, record)
        if not self.silent:
            print_scan(record)
            if self.report:
                print(f"Report: {self.report}")
        return FOUND if record["verdict"] in _FAILING[self.fail_on] else OK

    def _one_model(self) -> ModelMaybeOnImages:
        """The command as one about a single model."""
        if self.model is None:
            raise InputError("no model is given; give one, or many as --manifest")
        for field in dataclasses.fields(ManyModels):
            if getattr(self, field.name) is not None:
                option = field.name.replace("_", "-")
                raise InputError(f"--{option} goes with --manifest; leave it out for one model")
        if self.images is None and self.audit:
            raise InputError("an audit needs clean images of the task; give them as --images")
        names = (field.name for field in dataclasses.fields(ModelMaybeOnImages))
        own: dict[str, Any] = {name: getattr(self, name) for name in names}
        return ModelMaybeOnImages(**own)

    def _scan_many(self, manifest: Path) -> int:
        from bezoar.fleet import ScanOptions, scan_models
        from bezoar.manifest import read_manifest

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
        check_outputs(self.json, inputs=(manifest, *read))
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
        write_record(self.json, summary | {"command": command_line()})
        if not self.silent:
            print_fleet(summary)
        verdicts = {model.get("verdict") for model in summary["models"]}
        if verdicts & set(_FAILING[self.fail_on]):
            return FOUND
        return UNUSABLE if None in verdicts else OK

    def _executor(self) -> Executor:
        from bezoar.executors import make_executor

        for name in ("threads", "timeout", "memory_limit"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"--{name.replace('_', '-')} is {value}; expected more than 0")
        limit = self.memory_limit
        return make_executor(
            self.executor or "local",
            cpus_per_task=1 if self.threads is None else self.threads,
            gpus_per_task=self.gpus or 0.0,
            timeout_s=self.timeout,
            memory_limit=None if limit is None else int(limit * 2**30),
            reuse=True,
        )


_FAILING: dict[str, tuple[str, ...]] = {
    "suspicious": ("suspicious", "backdoor found"),
    "found": ("backdoor found",),
    "never": (),
}
