"""Does the runs of a benchmark that are missing, on any executor, and writes each at once.

First the references: a model that cannot be loaded fails there, and the runs that need it are
written down as failed with that reason instead of being tried one by one. Every outcome becomes one
file as soon as it is there, so whatever ends the harness costs no more than the runs in work.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import torch

import bezoar
from bezoar.bench import material
from bezoar.bench.grid import BenchGrid, chosen, open_grid_pool
from bezoar.bench.reported import reported_for
from bezoar.bench.results import FOLDER, KIND, path_of, read_result, write_result
from bezoar.bench.running import run_one
from bezoar.bench.runs import CLEAN_TWIN, NO_DEFENSE, Plan, PlannedRun, plan
from bezoar.errors import InputError
from bezoar.executors import Done, Executor, Outcome, Task
from bezoar.methods import methods
from bezoar.pools import Pool, PoolSpec, make_pool
from bezoar.pools.index import Entry
from bezoar.records import make_folder, write_json

POOL = "pool"  # below the results, where the grid says how the models are made
IMAGES = "images"  # below the results: prepared files, which may be deleted at any time
HASHES = "images.json"  # below the results: SHA-256 of data sets, public images and generators

_PUBLIC, _GENERATOR = "public images", "generator"  # among the files of a run

Finished = Callable[[dict[str, Any], int, int], None]
"""Called with the record of a finished run, the number of finished ones, and of all."""


@dataclass
class Summary:
    """How a benchmark went.

    Attributes:
        done: runs whose result is there, those of earlier calls included.
        failed: address → reason.
        unwritten: address → why its result could not be written; it is lost.
        renewed: addresses whose file was damaged and was made anew.
        notices: what the tables lack, in sentences.
        ran: how many were run by this call, and have their result there.
        seconds: of this call.
        working_seconds: that executors reported for the runs of this call.
    """

    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    unwritten: dict[str, str] = field(default_factory=dict)
    renewed: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    ran: int = 0
    seconds: float = 0.0
    working_seconds: float = 0.0

    def as_record(self) -> dict[str, Any]:
        """The plain form."""
        return {
            "kind": "bench",
            "done": self.done,
            "failed": self.failed,
            "unwritten": self.unwritten,
            "renewed": self.renewed,
            "notices": self.notices,
            "ran": self.ran,
            "seconds": self.seconds,
            "working_seconds": self.working_seconds,
        }


@dataclass(frozen=True)
class Bench:
    """A benchmark ready to run: what is to be done, and with which files.

    Attributes:
        plan: the runs.
        pool: the models.
        images: data set → its prepared file.
        public: data set → prepared public images in its size.
    """

    plan: Plan
    pool: Pool
    images: dict[str, material.Material]
    public: dict[str, Path]


def make_ready(
    grid: BenchGrid,
    out: Path,
    *,
    beside: Path | None = None,
    executor: Executor | None = None,
    device: str | None = None,
    progress: Callable[[str, str, float], None] | None = None,
) -> Bench:
    """Makes the grid's pool if it has none yet, opens the images, and plans the runs.

    Args:
        grid: what to run.
        out: the folder of the results.
        beside: where relative names in the grid are looked for; by default the working directory.
        executor: trains the models of a grid that describes its own pool; with None they must be
            there.
        device: where they are trained; by default the accelerator, else the CPU.
        progress: called with a model's name, what is done with it, and the share that is finished.

    Raises:
        InputError: the pool, the images, the generator or the budgets cannot be used.
    """
    if isinstance(grid.pool, PoolSpec) and executor is not None:
        made = make_pool(grid.pool, out / POOL, executor, device=device, progress=progress)
        if not made.entries:
            reasons = "; ".join(f"{name}: {why}" for name, why in made.failed.items())
            raise InputError(f"no model of the grid's pool could be made: {reasons}")
    pool = open_grid_pool(grid, out / POOL)
    entries = chosen(grid, pool)
    folder = out / IMAGES
    for needed in (folder, out / FOLDER):
        make_folder(needed)
    names = dict.fromkeys(entry.data for entry in entries)
    images = {data: material.prepare(data, folder, test_images=grid.test_images) for data in names}
    for data, ready in images.items():
        if max(grid.images) > ready.rest:
            raise InputError(
                f"images asks for {max(grid.images)} clean images, and {data} has {ready.rest} "
                f"beside the {grid.test_images} that measure"
            )
    hashes = {data: ready.sha256 for data, ready in images.items()}
    public: dict[str, Path] = {}
    for data, ready in images.items():
        lent = _lent(grid, out, data)
        if grid.public is not None:
            public[data], hashes[lent[_PUBLIC]] = material.prepare_public(
                grid.public, beside or Path(), folder, ready.shape
            )
        if grid.generator is not None:
            hashes[lent[_GENERATOR]] = material.generator_sha256(Path(grid.generator))
    with contextlib.suppress(OSError, msgspec.DecodeError):  # other grids may have results here
        hashes = _read_hashes(out) | hashes
    write_json(out / HASHES, hashes)
    return Bench(_plan(grid, out, pool, entries, hashes), pool, images, public)


def plan_again(grid: BenchGrid, out: Path) -> Plan:
    """The plan of a grid that was run in ``out``, from the pool and the results alone.

    Tables need no image: what is known of the images was written down when the grid was run.

    Raises:
        InputError: nothing was run there, or not with the images of this grid.
    """
    pool = open_grid_pool(grid, out / POOL)
    entries = chosen(grid, pool)
    try:
        hashes = _read_hashes(out)
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(
            f"{out} holds no results of a grid ({HASHES}: {error}); make some with `bezoar bench "
            "run`, or name their folder (--out)"
        ) from error
    needed = {entry.data for entry in entries}
    needed.update(*(_lent(grid, out, data).values() for data in list(needed)))
    if lacking := sorted(needed - hashes.keys()):
        raise InputError(
            f"{out} was made without {', '.join(lacking)}, which this grid has; call `bezoar bench "
            "run` first"
        )
    return _plan(grid, out, pool, entries, hashes)


def _lent(grid: BenchGrid, out: Path, data: str) -> dict[str, str]:
    """What methods get in the place of images of ``data``: name in a run → name in ``HASHES``."""
    names = {}
    if grid.public is not None:
        names[_PUBLIC] = f"{_PUBLIC} {grid.public} for {data}"
    if grid.generator is not None:
        # ``read_grid`` has put the working directory of one command in front; this holds for all.
        names[_GENERATOR] = f"{_GENERATOR} {Path(os.path.relpath(grid.generator, out)).as_posix()}"
    return names


def _read_hashes(out: Path) -> dict[str, str]:
    return msgspec.json.decode((out / HASHES).read_bytes(), type=dict[str, str])


def _plan(
    grid: BenchGrid, out: Path, pool: Pool, entries: tuple[Entry, ...], hashes: Mapping[str, str]
) -> Plan:
    lent = {
        entry.data: {name: hashes[key] for name, key in _lent(grid, out, entry.data).items()}
        for entry in entries
    }
    return plan(grid, pool, entries, hashes, lent)


def run(
    bench: Bench,
    out: Path,
    executor: Executor,
    *,
    device: str | None = None,
    retry: bool = False,
    finished: Finished | None = None,
    progress: Callable[[str, str, float], None] | None = None,
) -> Summary:
    """Does what is missing.

    Args:
        bench: what to run.
        out: the folder of the results.
        executor: where the runs happen.
        device: where each computes; by default the accelerator, else the CPU.
        retry: also do again what failed before; otherwise a failure is a result.
        finished: called after each run.
        progress: called with a run's address, what it does, and the share that is finished.
    """
    started = time.perf_counter()
    summary = Summary(notices=list(bench.plan.notices))
    planned = bench.plan.runs
    state = {one.key: read_result(out, one) for one in planned}
    unused = (one.key for one in planned if state[one.key] is None)
    summary.renewed = [key for key in unused if path_of(out, key).exists()]
    nothing = {one.entry.name: one.key for one in bench.plan.references if one.label == NO_DEFENSE}

    def untouched(one: PlannedRun) -> dict[str, Any] | None:
        """The record of the model itself, which is measured once for all its runs."""
        return state[nothing[one.entry.name]]

    # A failure that is tried again is not there.
    missing = {
        key
        for key, found in state.items()
        if found is None or (retry and found["state"] == "failed")
    }

    def written() -> list[dict[str, Any]]:
        lost = summary.unwritten.keys() | missing
        return [found for key, found in state.items() if found is not None and key not in lost]

    def note(one: PlannedRun, record: dict[str, Any]) -> None:
        state[one.key] = record
        missing.discard(one.key)
        try:
            write_result(out, record)
        except InputError as error:
            summary.unwritten[one.key] = str(error)
        if finished is not None:
            finished(record, len(written()), len(planned))

    def do(runs: Iterable[PlannedRun]) -> None:
        by_key = {one.key: one for one in runs}
        tasks = [_task(bench, one, untouched(one), device) for one in by_key.values()]
        for key, outcome in executor.run(tasks, progress=progress):
            summary.working_seconds += outcome.seconds
            note(by_key[key], record_of(by_key[key], outcome, executor))
            summary.ran += key not in summary.unwritten

    do(one for one in bench.plan.references if one.key in missing)
    able = []
    for one in bench.plan.others:
        if one.key not in missing:
            continue
        reason = _unusable(untouched(one))
        if reason is None:
            able.append(one)
        else:
            failure = {"kind": "error", "message": reason, "traceback": "", "seconds": 0.0}
            note(one, _facts(one, executor) | {"state": "failed", "failure": failure})
    do(able)
    for one in planned:
        found = state[one.key]
        if found is not None and found["state"] == "failed":
            summary.failed[one.key] = found["failure"]["message"]
    summary.done = sum(found["state"] == "done" for found in written())
    summary.seconds = time.perf_counter() - started
    return summary


def record_of(planned: PlannedRun, outcome: Outcome, executor: Executor) -> dict[str, Any]:
    """The content of a result file."""
    facts = _facts(planned, executor)
    if isinstance(outcome, Done):
        return facts | {"state": "done", **outcome.value}
    return facts | {"state": "failed", "failure": msgspec.to_builtins(outcome)}


def _facts(planned: PlannedRun, executor: Executor) -> dict[str, Any]:
    """What is known of a run before it runs."""
    entry, name = planned.entry, planned.run.method["name"]
    return {
        "kind": KIND,
        "key": planned.key,
        "config": msgspec.to_builtins(planned.run),
        "label": planned.label,
        "role": planned.role,
        "seed": planned.run.seed,
        "needs": methods.get(name).needs if planned.role != "reference" else None,
        "model": {
            name: value
            for name, value in msgspec.to_builtins(entry).items()
            if name in ("name", "half", "status", "data", "network", "attack", "target", "rate")
        },
        "reported": reported_for(name, entry.attack, entry.data),
        "versions": {
            "bezoar": bezoar.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": platform.machine(),
        "executor": repr(executor),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _task(
    bench: Bench, planned: PlannedRun, untouched: dict[str, Any] | None, device: str | None
) -> Task:
    entry, grid = planned.entry, bench.plan.grid
    files = {
        "model": str(bench.pool.folder / entry.name),
        "images": str(bench.images[entry.data].file),
    }
    if planned.run.public is not None and entry.data in bench.public:
        files["public"] = str(bench.public[entry.data])
    arguments: dict[str, Any] = {"config": msgspec.to_builtins(planned.run), "device": device}
    if planned.label == CLEAN_TWIN and entry.twin is not None:
        files["twin"] = str(bench.pool.folder / entry.twin)
    if planned.run.public is not None and grid.generator is not None:
        files["generator"] = str(Path(grid.generator).parent)
        arguments["generator_name"] = Path(grid.generator).name
    if planned.role != "reference" and untouched is not None and untouched["state"] == "done":
        arguments["before"] = untouched["after"]
    return Task(key=planned.key, function=run_one, arguments=arguments, files=files)


def _unusable(untouched: dict[str, Any] | None) -> str | None:
    """Why a run cannot be done, from the record of its model; None where it can."""
    if untouched is None:
        return "its model was not measured"
    if untouched["state"] == "failed":
        return f"its model cannot be used: {untouched['failure']['message']}"
    return None
