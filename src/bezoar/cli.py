"""The command line: each command is a small dataclass whose fields are its options.

Nothing heavy is imported before a command runs, so ``bezoar --help`` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from bezoar.errors import InputError
from bezoar.screen import print_facts, print_scan, progress_bar

if TYPE_CHECKING:
    from bezoar.images import ImageSet
    from bezoar.intake import LoadedModel
    from bezoar.methods import Method

OK, FOUND, UNUSABLE = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class Common:
    """Options of every command.

    Attributes:
        json: write the full record as JSON to this file; - is standard output.
        seed: where the random draws start; the same seed gives the same result.
        device: where to compute, such as cpu or cuda; by default the accelerator if there is one.
        quiet: no progress and no summary.
    """

    json: str | None = None
    seed: int = 0
    device: str | None = None
    quiet: bool = False

    @property
    def _silent(self) -> bool:
        return self.quiet or self.json == "-"


@dataclass(frozen=True, kw_only=True)
class Model:
    """Facts about a bare weights file; a model.toml holds them already.

    Attributes:
        architecture: timm:NAME, torchvision:NAME, bezoar:NAME or path/to/file.py:function.
        mean: subtracted from images in [0, 1], for each channel; 0 if the network takes them as
            they are.
        std: then divided by; 1 if the network takes them as they are.
        input_size: height and width of the images.
        classes: names of the classes in the order of the logits.
    """

    architecture: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    input_size: tuple[int, int] | None = None
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Images:
    """Where images come from.

    Attributes:
        images: a folder with one sub-folder per class, a flat folder, a parquet file or an .npz.
        resize: none refuses images of another size; stretch and crop make them fit.
        limit: draw at most so many images, in equal shares of each class; by default all.
    """

    images: str
    resize: Literal["none", "stretch", "crop"] = "none"
    limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class Demo(Common):
    """Poison, scan, clean, check: real handwritten digits, under a minute, with a report.

    Attributes:
        out: folder for the models, the records and the report.
        open: show the report in the browser; --no-open leaves it closed.
    """

    out: Path = Path("bezoar-demo")
    open: bool = True

    def run(self) -> int:
        """Runs the demo."""
        import torch

        from bezoar import demo
        from bezoar.device import resolve_device

        device = resolve_device(self.device)
        torch.set_num_threads(1)  # sharing out 8x8 images costs more than it saves
        # The demo makes its own folder, and the JSON may lie in it.
        if self.json and Path(self.json).parent != self.out:
            _check_outputs(self.json)
        with progress_bar(self._silent) as progress:
            record, page = demo.run(
                self.out, seed=self.seed, device=device, progress=progress, command=_command()
            )
        _write_json(self.json, record)
        if not self._silent:
            for line in record["story"]:
                print(line)
            print(f"Report: {page}")
        if self.open and not self._silent and sys.stdout.isatty():
            import webbrowser

            webbrowser.open(page.resolve().as_uri())
        return OK


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

        _check_outputs(self.json, inputs=(self.model,))
        if self.model.suffix.lower() == ".toml" or self.architecture:
            loaded = intake.load_model(self.model, device=self.device, **_given(self))
            weights, fits = loaded.weights, True
            _check_outputs(self.json, inputs=(weights.path,))
        else:
            weights, fits = intake.read_weights(self.model), None
        record = {"kind": "inspect", **msgspec.to_builtins(intake.facts(weights))}
        if fits:
            record["architecture"] = loaded.description.architecture
            record["notices"] = [*record["notices"], *loaded.notices]
        _write_json(self.json, record)
        if not self._silent:
            print_facts(record)
        return OK


@dataclass(frozen=True, kw_only=True)
class Scan(Common, Model, Images):
    """Verdict, suspected classes and evidence.

    Exit code 0: nothing found. 1: suspicious or found (--fail-on chooses). 2: input not usable.

    Attributes:
        model: a model.toml, or a weights file with the facts as options.
        report: write the HTML report to this file.
        fail_on: the mildest verdict that gives exit code 1.
    """

    model: tyro.conf.Positional[Path]
    report: Path | None = None
    fail_on: Literal["suspicious", "found", "never"] = "suspicious"

    def run(self) -> int:
        """Runs the scan."""
        from bezoar import pipeline

        loaded, images = _load(self, self, outputs=(self.report, self.json))
        with progress_bar(self._silent) as progress:
            finding = pipeline.scan(loaded.classifier, images, seed=self.seed, progress=progress)
        record = finding.record | {"command": _command()}
        _add_sources(record, loaded, self.images)
        if self.report:
            _write_report(self.report, record, images, loaded, finding.suspects)
        _write_json(self.json, record)
        if not (self._silent):
            print_scan(record)
            if self.report:
                print(f"Report: {self.report}")
        return _exit_code(record["verdict"], self.fail_on)


@dataclass(frozen=True, kw_only=True)
class Clean(Common, Model, Images):
    """Cleaned weights and a report.

    Without --method the model is scanned first: nothing found leaves it untouched, a suspected
    class is repaired.

    Exit code 0: done. 1: the repair costs too much accuracy and was not written. 2: input not
    usable.

    Attributes:
        model: a model.toml, or a weights file with the facts as options.
        out: where the cleaned weights go: same keys, number formats and container as the input.
        method: which method; see `bezoar methods`.
        preset: published takes the paper's settings instead of ours.
        set: hyper-parameters as name=value, such as beta=2 recipe.epochs=10.
        max_accuracy_drop: points of held-out accuracy, out of 100, that a repair may cost.
        force: write the repair even if it costs more.
        report: write the HTML report to this file; by default beside the output.
    """

    model: tyro.conf.Positional[Path]
    out: Path
    method: str = "auto"
    preset: Literal["default", "published"] = "default"
    set: tuple[str, ...] = ()
    max_accuracy_drop: float = 5.0
    force: bool = False
    report: Path | None = None

    def run(self) -> int:
        """Runs the repair."""
        from bezoar import intake, pipeline

        report = self.report or self.out.with_name(f"{self.out.stem}.report.html")
        if not 0 <= self.max_accuracy_drop <= 100:
            raise InputError(
                f"--max-accuracy-drop is {self.max_accuracy_drop:g}; expected points from 0 to 100"
            )
        method = _method(self.method, self.preset, self.set)
        loaded, images = _load(self, self, outputs=(self.out, report, self.json))
        intake.check_writable(self.out, loaded.weights)
        with progress_bar(self._silent) as progress:
            repair = pipeline.clean(
                loaded.classifier,
                images,
                method=method,
                seed=self.seed,
                max_accuracy_drop=self.max_accuracy_drop / 100,
                progress=progress,
            )
        record = repair.record | {"command": _command(), "written": False, "forced": False}
        _add_sources(record, loaded, self.images)
        _add_sources(record["scan"], loaded, self.images)
        if record["accepted"] or self.force:
            intake.write_weights(loaded.weights, repair.classifier.network.state_dict(), self.out)
            record["written"], record["forced"] = True, not record["accepted"]
            record["output"] = {
                "file": str(self.out),
                "sha256": intake.read_weights(self.out).sha256,
            }
        _write_report(report, record, images, loaded, record["scan"]["suspects"])
        _write_json(self.json, record)
        if not (self._silent):
            print_scan(record["scan"])
            print(record["outcome"])
            print(f"Weights: {self.out}" if record["written"] else "No weights were written.")
            print(f"Report: {report}")
        return OK if record["written"] else FOUND


@dataclass(frozen=True, kw_only=True)
class Evaluate(Common, Model, Images):
    """ACC, ASR and RA when the trigger is known.

    Attributes:
        model: a model.toml, or a weights file with the facts as options.
        trigger: the attack and its parameters, such as bad-nets:target=3,size=4 or
            stored-pattern:file=trigger.npy,target=5.
    """

    model: tyro.conf.Positional[Path]
    trigger: str

    def run(self) -> int:
        """Measures the model."""
        from bezoar.attacks import parse_attack
        from bezoar.evaluation import evaluate

        attack = parse_attack(self.trigger)
        loaded, images = _load(self, self, outputs=(self.json,))
        scores = evaluate(loaded.classifier, images, attack)
        record = {
            "kind": "evaluate",
            "attack": repr(attack),
            "scores": scores.as_record(),
            "command": _command(),
        }
        _write_json(self.json, record)
        if not (self._silent):
            for name, rate in scores.intervals.items():
                print(
                    f"{name.upper()}  {100 * rate.value:5.1f} %   "
                    f"(95 %: {100 * rate.low:.1f} to {100 * rate.high:.1f}, {rate.count} images)"
                )
        return OK


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

    @property
    def _silent(self) -> bool:
        return self.quiet or self.json == "-"

    def run(self) -> int:
        """Lists the methods."""
        from bezoar.methods import methods

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
        _write_json(self.json, {"kind": "methods", "methods": rows})
        if not (self._silent):
            for row in rows:
                print(f"{row['name']}: {row['title']}")
                for key in ("paper", "needs", "layers", "cost", "finds the target class"):
                    value = row[key]
                    shown = ("yes" if value else "no") if isinstance(value, bool) else value
                    print(f"    {key}: {shown}")
                if self.name:
                    print("    hyper-parameters (--set name=value):")
                    for key, value in _flat(row["configuration"]):
                        print(f"        {key} = {value}")
        return OK


Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Scan, tyro.conf.subcommand("scan")]
    | Annotated[Clean, tyro.conf.subcommand("clean")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Methods, tyro.conf.subcommand("methods")]
)


def main(arguments: list[str] | None = None) -> None:
    """The entry point of the ``bezoar`` command; leaves with its exit code."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    # Threads that wait by spinning slow a busy machine down many times over; torch reads this when
    # it is imported, which happens below.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    given = sys.argv[1:] if arguments is None else arguments
    if given in (["--version"], ["-V"]):
        from bezoar import __version__

        print(f"bezoar {__version__}")
        return OK
    command = tyro.cli(
        Command,
        prog="bezoar",
        description="Find the backdoor in an image classifier, remove it, show the evidence.",
        args=given,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    try:
        return int(command.run())
    except InputError as error:
        print(f"bezoar: {error}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        print("bezoar: interrupted; no file is half-written.", file=sys.stderr)
        return UNUSABLE
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNUSABLE


# -- reading ---------------------------------------------------------------------------------------


def _given(model: Model) -> dict[str, Any]:
    names = ("architecture", "mean", "std", "input_size", "classes")
    return {name: getattr(model, name) for name in names}  # None is "not given" to load_model


def _load(
    model: Scan | Clean | Evaluate, source: Images, *, outputs: tuple[Path | str | None, ...]
) -> tuple[LoadedModel, ImageSet]:
    from bezoar import intake
    from bezoar.device import resolve_device
    from bezoar.images import ImageSet

    _check_outputs(*outputs, inputs=(model.model, source.images))
    if source.limit is not None and source.limit < 1:
        raise InputError(f"--limit is {source.limit}; expected at least 1")
    device = resolve_device(model.device)
    loaded = intake.load_model(model.model, device=device, **_given(model))
    _check_outputs(*outputs, inputs=(loaded.weights.path,))
    classifier = loaded.classifier
    with progress_bar(model._silent) as progress:
        images = ImageSet.open(
            source.images,
            channels=loaded.description.channels,
            size=classifier.input_size,
            resize=source.resize,
            classes=loaded.description.classes,
            progress=lambda done, total: progress("reading images", done / max(total, 1)),
        )
    if source.limit is not None and source.limit < len(images):
        images = images.sample(source.limit, seed=model.seed)
    return loaded, images


def _method(
    name: str, preset: Literal["default", "published"], settings: tuple[str, ...]
) -> Method | None:
    import msgspec

    from bezoar.methods import methods

    if name == "auto":
        if settings or preset != "default":
            raise InputError("--set and --preset need a --method; see `bezoar methods`")
        return None
    kind = methods.get(name)
    method = kind.published() if preset == "published" else kind()
    values = method.configuration()
    for setting in settings:
        key, equals, text = setting.partition("=")
        place = values
        *path, last = key.split(".")
        for part in path:
            place = place.get(part, {}) if isinstance(place, dict) else {}
        if not equals or not isinstance(place, dict) or last not in place:
            known = ", ".join(key for key, _ in _flat(values))
            raise InputError(f"--set {setting}: expected name=value with one of {known}")
        place[last] = None if text.lower() == "none" else text
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise InputError(f"--set {' '.join(settings)}: {error}") from None


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


# -- writing ---------------------------------------------------------------------------------------


def _check_outputs(*outputs: Path | str | None, inputs: tuple[Path | str, ...] = ()) -> None:
    """An output that cannot be written should be known before the work, not after it.

    An output that would replace an input, or another output, counts as one.
    """
    taken = {
        os.path.realpath(path): "is read by this command and never overwritten" for path in inputs
    }
    for output in outputs:
        if output is None or output == "-":
            continue
        path = Path(output)
        if path.is_dir():
            raise InputError(f"{path} is a folder; give the name of a file to write")
        if not path.parent.is_dir():
            raise InputError(
                f"{path} cannot be written: the folder {path.parent} does not exist; create it, or "
                "give another file"
            )
        if not os.access(path.parent, os.W_OK):
            raise InputError(
                f"{path} cannot be written: no files can be made in {path.parent}; give a file in "
                "a folder that you may write to"
            )
        place = os.path.realpath(path)
        if place in taken:
            raise InputError(f"{path} {taken[place]}; give another name for the output")
        taken[place] = "is given for two outputs"


def _write_json(target: str | None, record: dict[str, Any]) -> None:
    if target is None:
        return
    from bezoar.records import to_json, write_text

    text = json.dumps(to_json(record), indent=1, allow_nan=False)
    if target == "-":
        print(text)
    else:
        write_text(Path(target), text + "\n")


def _command() -> str:
    import shlex

    return shlex.join(["bezoar", *sys.argv[1:]])


def _add_sources(record: dict[str, Any], loaded: LoadedModel, images: str) -> None:
    weights = loaded.weights
    record["model"] |= {
        "file": str(weights.path),
        "sha256": weights.sha256,
        "container": weights.container,
        "architecture": loaded.description.architecture,
    }
    record["images"]["source"] = images
    record["notices"] = [*record.get("notices", []), *loaded.notices]


def _write_report(
    path: Path,
    record: dict[str, Any],
    images: ImageSet,
    loaded: LoadedModel,
    suspects: tuple[int, ...] | list[int],
) -> None:
    from bezoar import report
    from bezoar.records import to_json
    from bezoar.report.examples import examples

    pictures = examples(loaded.classifier, images, suspects)
    report.write(path, report.render(to_json(record), pictures))


def _exit_code(verdict: str, fail_on: str) -> int:
    failing = {
        "suspicious": ("suspicious", "backdoor found"),
        "found": ("backdoor found",),
        "never": (),
    }
    return FOUND if verdict in failing[fail_on] else OK


if __name__ == "__main__":
    main()
