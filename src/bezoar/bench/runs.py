"""The runs of a benchmark: what each is, in full, and the address that follows from it.

A run is named by a hash over everything that it is given: the model's and the trigger's files, the
images or what a method gets in their place, the whole configuration of the method, budget and seed.
Two grids that share runs share results, a rerun does only what is missing, and a change of any
setting is another run. A change of the code is not: the record names the version that made it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec.structs import force_setattr, replace

from bezoar.bench.grid import BenchGrid
from bezoar.methods import FineTuning, Method, takes_no_task_image, takes_public
from bezoar.pools import Pool
from bezoar.pools.index import Entry
from bezoar.pools.making import MODEL, TRIGGER, WEIGHTS

NO_DEFENSE, CLEAN_TWIN = "no defense", "clean twin"
REFERENCES = (NO_DEFENSE, CLEAN_TWIN)

Role = Literal["reference", "method", "control"]


class Run(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run; what its address is a hash of.

    Attributes:
        model: the name of the model's folder.
        files: name → SHA-256 of what the model and its trigger consist of, and of what a method
            got in the place of images of the task.
        data: the data set's name.
        images_sha256: of the whole test split that clean and test images come from.
        test_images: how many of them measure.
        method: its name and all its settings; of a reference, the name alone.
        images: clean images that the method gets.
        seed: of the draw of these images, and of the method.
        public: the public images or the generator that a method got instead, by name.
        oracle: whether the oracle's choice was measured, too.
    """

    model: str
    files: dict[str, str]
    data: str
    images_sha256: str
    test_images: int
    method: dict[str, Any]
    images: int = 0
    seed: int = 0
    public: str | None = None
    oracle: bool = False

    @property
    def key(self) -> str:
        """The address: 16 hexadecimal digits."""
        text = json.dumps(msgspec.to_builtins(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class PlannedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run with what tables call it.

    Attributes:
        run: what it is.
        label: the method as the grid's file writes it.
        role: references are measured once a model; controls are fine-tuning of a given length.
        entry: the model, as the pool knows it.
        key: the address of the run.
    """

    run: Run
    label: str
    role: Role
    entry: Entry
    key: str = ""

    def __post_init__(self) -> None:
        force_setattr(self, "key", self.run.key)  # a hash over much, asked for often


def plan(
    grid: BenchGrid,
    pool: Pool,
    entries: tuple[Entry, ...],
    hashes: Mapping[str, str],
    lent: Mapping[str, Mapping[str, str]],
) -> Plan:
    """All runs of a grid: references first, then seed by seed, budget by budget.

    A rerun that is stopped early therefore holds whole columns of the first seed.

    Args:
        grid: what to run.
        pool: where the models are.
        entries: those that the grid chose.
        hashes: data set → SHA-256 of its test split.
        lent: data set → name → SHA-256 of what methods that need public images get for it.
    """
    there = {entry.name for entry in pool.entries}
    about = {
        entry.name: Run(
            model=entry.name,
            files=_files(pool.folder, entry, twin=None),
            data=entry.data,
            images_sha256=hashes[entry.data],
            test_images=grid.test_images,
            method={"name": NO_DEFENSE},
        )
        for entry in entries
    }
    runs: dict[str, PlannedRun] = {}

    def add(run: Run, label: str, role: Role, entry: Entry) -> None:
        planned = PlannedRun(run=run, label=label, role=role, entry=entry)
        runs.setdefault(planned.key, planned)

    for entry in entries:
        run = about[entry.name]
        add(run, NO_DEFENSE, "reference", entry)
        if entry.twin is not None and entry.twin in there:
            files = _files(pool.folder, entry, twin=entry.twin)
            twin = replace(run, method={"name": CLEAN_TWIN}, files=files)
            add(twin, CLEAN_TWIN, "reference", entry)
    source = grid.generator or grid.public
    for seed in grid.seeds:
        for budget, label, method, role in _columns(grid, grid.parsed()):
            borrows = takes_public(method)
            for entry in entries:
                run = about[entry.name]
                run = replace(
                    run,
                    files={**run.files, **(lent[entry.data] if borrows else {})},
                    method={"name": method.name, **method.configuration()},
                    images=budget,
                    seed=seed,
                    public=Path(source).name if borrows and source else None,
                    oracle=method.name in grid.oracle and entry.attack is not None,
                )
                add(run, label, role, entry)
    unmade = {} if isinstance(grid.pool, str) else _unmade(pool)
    return Plan(grid=grid, runs=tuple(runs.values()), entries=entries, unmade=unmade)


def _unmade(pool: Pool) -> dict[str, str]:
    """The models of a grid's own pool that are not there, and why."""
    return pool.failed | dict.fromkeys(pool.waiting, "it is still to be made")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The runs of a grid, each once, in the order in which they should run.

    Attributes:
        grid: where they come from.
        runs: references, then methods and controls.
        entries: the models.
        unmade: models that the grid describes and that are not there → why.
    """

    grid: BenchGrid
    runs: tuple[PlannedRun, ...]
    entries: tuple[Entry, ...]
    unmade: dict[str, str] = {}

    @property
    def references(self) -> tuple[PlannedRun, ...]:
        """Those that the others are measured against."""
        return tuple(planned for planned in self.runs if planned.role == "reference")

    @property
    def others(self) -> tuple[PlannedRun, ...]:
        """Methods and controls."""
        return tuple(planned for planned in self.runs if planned.role != "reference")

    @property
    def notices(self) -> tuple[str, ...]:
        """What the tables lack, in sentences."""
        return (*self._without_twin(), *self._without_model())

    def _without_model(self) -> Iterator[str]:
        for name, reason in self.unmade.items():
            yield f"the model {name} is not there, so no row counts it: {reason}"

    def _without_twin(self) -> Iterator[str]:
        attacked = [entry.name for entry in self.entries if entry.attack is not None]
        twins = {one.entry.name for one in self.references if one.label == CLEAN_TWIN}
        without = [name for name in attacked if name not in twins]
        if not without:
            return
        shown = ", ".join(without[:3]) + (" ..." if len(without) > 3 else "")
        yield (
            f"the pool lacks the clean twin of {len(without)} of {len(attacked)} attacked models "
            f"({shown}), so no row of a clean twin counts them"
        )


def control_label(epochs: int) -> str:
    """What fine-tuning of that length is called."""
    return f"ft:recipe.epochs={epochs}"


def control_of(epochs: int) -> FineTuning:
    """That fine-tuning."""
    plain = FineTuning()
    return replace(plain, recipe=replace(plain.recipe, epochs=epochs))


def _columns(grid: BenchGrid, parsed: dict[str, Method]) -> Iterator[tuple[int, str, Method, Role]]:
    """(budget, label, method, role), methods before controls in every budget."""
    free = [(text, m) for text, m in parsed.items() if takes_no_task_image(m)]
    for text, method in free:
        yield 0, text, method, "method"
    for budget in grid.images:
        if budget == 0:
            continue
        for text, method in parsed.items():
            if not takes_no_task_image(method):
                yield budget, text, method, "method"
        for epochs in grid.control_epochs:
            yield budget, control_label(epochs), control_of(epochs), "control"


def _files(folder: Path, entry: Entry, *, twin: str | None) -> dict[str, str]:
    """The hashes of a model's files; one that cannot be read is told when the run tries to."""
    names = [MODEL, WEIGHTS] + ([TRIGGER] if entry.attack else [])
    files = {name: _sha256(folder / entry.name / name) for name in names}
    if twin is not None:
        files |= {f"twin {name}": _sha256(folder / twin / name) for name in (MODEL, WEIGHTS)}
    return files


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return f"unreadable: {error.strerror or error}"
