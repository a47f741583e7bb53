"""What a benchmark shall run: a TOML file with models, methods, budgets and seeds.

    pool = "pool"                       # a folder of `bezoar attack pool`, or a [pool] table
    methods = ["rnp", "anp", "ft:trained=norms", "clp:published"]
    images = [100, 500]
    seeds = [0, 1, 2]

makes, for every model of the pool's held-out half, one run a method, budget and seed. Beside what
the file names there are always the rows that a table cannot be read without: *no defense*, *clean
twin*, and plain fine-tuning at several lengths, so that each method can be compared with
fine-tuning that costs as much (see ``bezoar.bench.table``).
"""

from __future__ import annotations

import fnmatch
import math
from pathlib import Path
from typing import Any

import msgspec

from bezoar.errors import InputError
from bezoar.methods import Method
from bezoar.methods.spelling import parse_method
from bezoar.pools import Pool, PoolSpec, open_pool, plan
from bezoar.pools.index import Entry, Status
from bezoar.pools.spec import Half, refuse_unknown
from bezoar.records import read_toml


class BenchGrid(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole benchmark. Empty lists choose all there is in the pool.

    Attributes:
        pool: the folder of a pool, relative to the grid's file; or a table as in a pool's own file,
            whose models are then made first, in ``pool`` below the results.
        methods: as text, see ``parse_method``.
        images: clean-image budgets; 0 is for methods that need none.
        seeds: each draws other clean images, and seeds the method.
        halves: of the pool; settings may only be chosen on ``development``.
        status: of its models. Weak and natural ones are shown apart and never averaged in.
        data: names of data sets.
        networks: architectures, as shell patterns.
        attacks: names; clean models stay whatever is chosen here.
        rates: poison rates.
        models: shell patterns of names.
        test_images: labelled test images that measure every model, to within the rounding that
            the share of each class needs; the clean images are drawn from the rest of the test
            split.
        control_epochs: of the fine-tuning that every method is compared with; at least one.
        oracle: names of methods that sweep a threshold, for which the best that the sweep could
            have chosen with the true trigger is measured, too; an extra column. One that tunes
            after its threshold tunes for each setting, which takes that much longer.
        public: a data set by name or path, for methods that need public images; no labels of it are
            used.
        generator: a generator's file, trained on such images.
        title: of the tables.
    """

    pool: str | PoolSpec
    methods: tuple[str, ...]
    images: tuple[int, ...] = (500,)
    seeds: tuple[int, ...] = (0, 1, 2)
    halves: tuple[Half, ...] = ("held-out",)
    status: tuple[Status, ...] = ()
    data: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()
    rates: tuple[float, ...] = ()
    models: tuple[str, ...] = ()
    test_images: int = 2000
    control_epochs: tuple[int, ...] = (5, 20, 80)
    oracle: tuple[str, ...] = ()
    public: str | None = None
    generator: str | None = None
    title: str = "Benchmark"

    def __post_init__(self) -> None:
        for name in ("methods", "images", "seeds", "halves", "control_epochs"):
            values = getattr(self, name)
            if not values:
                raise InputError(f"{name} is empty; give at least one")
            if len(set(values)) != len(values):
                raise InputError(f"{name} holds a value twice: {', '.join(map(str, values))}")
        if min(self.images) < 0:
            raise InputError(f"images is {min(self.images)}; expected numbers of images, 0 or more")
        if self.test_images < 1:
            raise InputError(f"test_images is {self.test_images}; expected at least 1")
        if any(epochs < 1 for epochs in self.control_epochs):
            raise InputError(f"control_epochs is {self.control_epochs}; expected numbers above 0")
        for rate in self.rates:
            if not (math.isfinite(rate) and 0 < rate <= 1):
                raise InputError(f"the poison rate {rate} lies outside (0, 1]")

    def parsed(self) -> dict[str, Method]:
        """Text → method, in the order of the file.

        Raises:
            InputError: there is no such method or setting, no method for a budget, or no public
                images for a method that needs them.
        """
        found = {text: parse_method(text) for text in self.methods}
        spelled: dict[Method, str] = {}
        for text, method in found.items():
            if (other := spelled.setdefault(method, text)) != text:
                raise InputError(f"methods holds one method twice: {other} and {text}")
        sweeping = sorted({m.name for m in found.values() if m.sweeps})
        for name in self.oracle:
            if name not in sweeping:
                there = ", ".join(sweeping) or "none"
                raise InputError(
                    f"oracle: no method {name!r} of this grid sweeps a threshold; there are {there}"
                )
        kinds = {method.needs for method in found.values()}
        if 0 in self.images and not kinds & {"nothing", "public images"}:
            raise InputError(
                "images holds 0, and every method of this grid needs clean images: "
                f"{', '.join(self.methods)}; add one that needs none (see `bezoar methods`), or "
                "leave 0 out"
            )
        if not any(self.images) and kinds & {"labelled images", "unlabelled images"}:
            needing = [t for t, m in found.items() if m.needs.endswith("labelled images")]
            raise InputError(
                f"images holds nothing but 0, and {', '.join(needing)} need clean images; give a "
                "budget for them, or leave them out"
            )
        wanting = [text for text, m in found.items() if m.needs == "public images"]
        if wanting and self.public is None and self.generator is None:
            raise InputError(
                f"{', '.join(wanting)} needs public images; give `public` or `generator`, or leave "
                "it out"
            )
        if not wanting and (self.public is not None or self.generator is not None):
            raise InputError(
                "`public` and `generator` are for methods that need public images, and this grid "
                "has none"
            )
        return found


def read_grid(path: str | Path) -> BenchGrid:
    """Reads a benchmark's TOML file and checks everything that needs no model and no image.

    Raises:
        InputError: it is missing or no TOML, a key is unknown or wrong, a method is not known, or
            budgets contradict the methods.
    """
    path = Path(path)
    fields = read_toml(path)
    refuse_unknown(fields, BenchGrid, str(path))
    try:
        grid = msgspec.convert(fields, BenchGrid)
        grid.parsed()
    except (msgspec.ValidationError, InputError) as error:
        raise InputError(f"{path}: {error}") from None
    changes: dict[str, Any] = {}
    if isinstance(grid.pool, str):
        changes["pool"] = str(path.parent / grid.pool)
    if grid.generator is not None:
        changes["generator"] = str(path.parent / grid.generator)
    return msgspec.structs.replace(grid, **changes)


def chosen(grid: BenchGrid, pool: Pool) -> tuple[Entry, ...]:
    """The models of ``pool`` that the grid's filters leave.

    Raises:
        InputError: a filter names something that the pool does not have, or nothing is left.
    """
    everything = pool.entries
    _known(grid.data, {entry.data for entry in everything}, "data")
    _known(grid.attacks, {entry.attack for entry in everything if entry.attack}, "attacks")
    _known(grid.rates, {entry.rate for entry in everything}, "rates")
    for name in ("networks", "models"):
        values = {entry.name if name == "models" else entry.network for entry in everything}
        for pattern in getattr(grid, name):
            if not fnmatch.filter(values, pattern):
                raise InputError(f"{name}: no model of the pool matches {pattern!r}")
    found = tuple(entry for entry in everything if _passes(grid, entry))
    if not found:
        raise InputError("the filters of this grid leave no model of the pool")
    return found


def open_grid_pool(grid: BenchGrid, made: Path) -> Pool:
    """The pool of a grid, which must be there already: its own folder, or ``made``.

    Of ``made`` the models count that the grid describes, and those that it lacks are still to be
    made: the description may have changed since, or other grids have models there.

    Raises:
        InputError: there is no pool, or none of its models is of this grid.
    """
    if isinstance(grid.pool, str):
        return open_pool(grid.pool)
    pool = open_pool(made)
    planned = [one.job.name for one in plan(grid.pool)]
    entries = tuple(entry for entry in pool.entries if entry.name in planned)
    if pool.entries and not entries:
        raise InputError(
            f"{made} holds no model that this grid describes; call `bezoar bench run` first"
        )
    failed = {name: why for name, why in pool.failed.items() if name in planned}
    done = {entry.name for entry in entries} | failed.keys()
    waiting = tuple(name for name in planned if name not in done)
    return msgspec.structs.replace(pool, entries=entries, failed=failed, waiting=waiting)


def _passes(grid: BenchGrid, entry: Entry) -> bool:
    def matches(value: str, patterns: tuple[str, ...]) -> bool:
        return not patterns or any(fnmatch.fnmatch(value, pattern) for pattern in patterns)

    return (
        entry.half in grid.halves
        and (not grid.status or entry.status in grid.status)
        and (not grid.data or entry.data in grid.data)
        and matches(entry.network, grid.networks)
        and matches(entry.name, grid.models)
        and (entry.attack is None or not grid.attacks or entry.attack in grid.attacks)
        and (entry.attack is None or not grid.rates or entry.rate in grid.rates)
    )


def _known(values: tuple[Any, ...], known: set[Any], name: str) -> None:
    for value in values:
        if value not in known:
            there = ", ".join(map(str, sorted(known)))
            raise InputError(f"{name}: the pool has no {value!r}; it has {there}")
