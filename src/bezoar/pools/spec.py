"""What a pool shall hold: a TOML file with grids, and the jobs, one a model, that follow from it.

    test_images = 5000
    [recipe]
    epochs = 3

    [[grid]]
    data = "cifar10"
    networks = ["bezoar:resnet-8", "bezoar:wrn-16-1"]
    attacks = ["bad-nets:size=4", "blend"]
    targets = [0, 3]
    rates = [0.1, 0.01]
    seeds = [0, 1]

makes 2 x 2 x 2 x 2 x 2 = 32 backdoored models. A grid without attacks makes clean ones. The clean
twins that backdoored models are compared with are added where the grids do not name them.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any, Literal

import msgspec

from bezoar.attacks import Attack, attacks, configuration, parse_attack, to_be_planted
from bezoar.attacks.spelling import make_attack
from bezoar.datasets import DataSet, datasets
from bezoar.errors import InputError
from bezoar.recipe import Recipe
from bezoar.records import read_toml

Half = Literal["development", "held-out"]
HALVES: tuple[Half, Half] = ("development", "held-out")


class Grid(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Models that differ in every combination of the lists.

    Attributes:
        data: a data set by name or path; see ``open_dataset``.
        networks: architectures.
        arguments: keyword arguments of all of them.
        attacks: as text, see ``parse_attack``; none makes clean models.
        targets: target classes; by default the one that the attack's text says.
        rates: poison rates, shares of all training images.
        seeds: of the weights and all draws.
        recipe: changes to the pool's recipe, by name.
        half: puts all of them into one half; by default they take turns.
    """

    data: str
    networks: tuple[str, ...]
    arguments: dict[str, Any] = {}
    attacks: tuple[str, ...] = ()
    targets: tuple[int, ...] = ()
    rates: tuple[float, ...] = (0.1,)
    seeds: tuple[int, ...] = (0,)
    recipe: dict[str, Any] = {}
    half: Half | None = None


class PoolSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole pool.

    Attributes:
        grid: the grids.
        recipe: of every training; crops and flips follow the data set where this does not say them.
        train_images: at most so many images of the training split; each class keeps its share, and
            at least one image.
        test_images: the same of the test split, for the scores.
        precision: of the stored weights and triggers.
    """

    grid: tuple[Grid, ...]
    recipe: dict[str, Any] = {}
    train_images: int | None = None
    test_images: int | None = None
    precision: Literal["float16", "float32"] = "float32"

    def __post_init__(self) -> None:
        _check_counts(self)


class Job(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model to make; what the name of its folder is a hash of.

    Attributes:
        data: a data set by name or path.
        network: its architecture.
        arguments: keyword arguments of the architecture.
        attack: name and parameters; None for a clean model.
        rate: poison rate; 0 for a clean model.
        seed: of the weights and all draws.
        recipe: of the training.
        train_images: see ``PoolSpec``.
        test_images: see ``PoolSpec``.
        precision: see ``PoolSpec``.
    """

    data: str
    network: str
    arguments: dict[str, Any] = {}
    attack: dict[str, Any] | None = None
    rate: float = 0.0
    seed: int = 0
    recipe: Recipe = Recipe()
    train_images: int | None = None
    test_images: int | None = None
    precision: Literal["float16", "float32"] = "float32"

    def __post_init__(self) -> None:
        _check_counts(self)

    @property
    def name(self) -> str:
        """The folder's name: data, network, attack, and six digits of a hash of everything."""
        digest = hashlib.sha256(json.dumps(self._chosen(), sort_keys=True).encode()).hexdigest()
        attack = self.attack["name"] if self.attack else "clean"
        words = (Path(self.data).stem, self.network.rpartition(":")[2], attack, digest[:6])
        return "-".join("".join(c if c.isalnum() else "-" for c in word) for word in words)

    def _chosen(self) -> dict[str, Any]:
        """What differs from the defaults, so that a new option renames no model."""
        values = _without_defaults(msgspec.to_builtins(self), Job)
        values["recipe"] = _without_defaults(msgspec.to_builtins(self.recipe), Recipe)
        if self.attack is not None:
            name = self.attack["name"]
            values["attack"] = {"name": name, **_without_defaults(self.attack, attacks.get(name))}
        return values

    @property
    def twin(self) -> Job:
        """The clean model with the same data, network, recipe and seed; itself if this is clean."""
        return msgspec.structs.replace(self, attack=None, rate=0.0)

    def attack_or_none(self) -> Attack | None:
        """The attack, its trigger still to be learned where it is."""
        if self.attack is None:
            return None
        values = dict(self.attack)
        return make_attack(values.pop("name"), values, "the attack")


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """A job, and the half of the pool that it is in."""

    job: Job
    half: Half


def read_spec(path: str | Path) -> PoolSpec:
    """Reads a pool's TOML file.

    Raises:
        InputError: it is missing or no TOML, or a key is unknown, missing or wrong; the message has
            the key's path.
    """
    path = Path(path)
    fields = read_toml(path)
    refuse_unknown(fields, PoolSpec, str(path))
    for number, grid in enumerate(fields.get("grid", ())):
        refuse_unknown(grid, Grid, f"{path}: grid {number + 1}")
        refuse_unknown(grid.get("recipe", {}), Recipe, f"{path}: grid {number + 1}: recipe")
    refuse_unknown(fields.get("recipe", {}), Recipe, f"{path}: recipe")
    try:
        return msgspec.convert(fields, PoolSpec)
    except msgspec.ValidationError as error:
        raise InputError(f"{path} is no pool: {error}") from None


def plan(spec: PoolSpec) -> tuple[Planned, ...]:
    """The jobs of a pool, clean ones first, each once, and which half each is in.

    Within every group of the same data, network and attack the models take turns; the first of a
    group goes to the half that has fewer models of its kind (clean or backdoored). Grids that are
    added at the end of the file leave the halves of the others as they are.

    Raises:
        InputError: an attack, recipe or data set is not known or has a wrong value; no jobs.
    """
    jobs: dict[str, tuple[Job, Half | None]] = {}
    for number, grid in enumerate(spec.grid):
        try:
            own = _expand(grid, spec)
        except InputError as error:
            raise InputError(f"grid {number + 1}: {error}") from None
        for job in (*own, *(job.twin for job in own)):
            jobs.setdefault(job.name, (job, grid.half))
    if not jobs:
        raise InputError("the pool has no models; give at least one [[grid]]")
    groups: dict[str, list[int]] = {}
    totals = {kind: [0, 0] for kind in (True, False)}
    planned = []
    for job, half in jobs.values():
        attack = job.attack["name"] if job.attack else "clean"
        counts = groups.setdefault(f"{job.data} {job.network} {attack}", [0, 0])
        total = totals[job.attack is None]
        place = HALVES.index(half) if half else int(counts[0] > counts[1])
        if half is None and counts[0] == counts[1]:
            place = int(total[0] > total[1])
        counts[place] += 1
        total[place] += 1
        planned.append(Planned(job=job, half=HALVES[place]))
    return tuple(sorted(planned, key=lambda one: one.job.attack is not None))


def recipe_for(data: str, *changes: dict[str, Any]) -> Recipe:
    """The recipe with ``changes``, later ones first; crop and flip follow the data set.

    Raises:
        InputError: a change is unknown or wrong.
    """
    values: dict[str, Any] = {}
    known: DataSet | None = datasets.get(data) if data in datasets.names() else None
    if known is not None:
        values = {"crop_padding": known.crop_padding, "flip": known.flip}
    for change in changes:
        values |= change
    try:
        return msgspec.convert(values, Recipe)
    except msgspec.ValidationError as error:
        raise InputError(f"the recipe: {error}") from None


def _check_counts(made: PoolSpec | Job) -> None:
    for name in ("train_images", "test_images"):
        count = getattr(made, name)
        if count is not None and count < 1:
            raise InputError(f"{name} is {count}; expected at least 1")


def _expand(grid: Grid, spec: PoolSpec) -> list[Job]:
    for name in ("networks", "rates", "seeds"):
        if not getattr(grid, name):
            raise InputError(f"{name} is empty; give at least one")
    shared: dict[str, Any] = {
        "data": grid.data,
        "arguments": grid.arguments,
        "recipe": recipe_for(grid.data, spec.recipe, grid.recipe),
        "train_images": spec.train_images,
        "test_images": spec.test_images,
        "precision": spec.precision,
    }
    jobs = []
    for network, seed in itertools.product(grid.networks, grid.seeds):
        if not grid.attacks:
            jobs.append(Job(network=network, seed=seed, **shared))
        for attack in _attacks(grid):
            for rate in grid.rates:
                if not 0 < rate <= 1:
                    raise InputError(
                        f"poison rate {rate} must be greater than 0 and at most 1; a grid without "
                        "attacks makes clean models"
                    )
                jobs.append(
                    Job(
                        network=network,
                        seed=seed,
                        attack=configuration(attack),
                        rate=float(rate),
                        **shared,
                    )
                )
    return jobs


def _attacks(grid: Grid) -> list[Attack]:
    known = datasets.get(grid.data) if grid.data in datasets.names() else None
    classes = known.classes if known else None
    parsed = [parse_attack(text, num_classes=classes) for text in grid.attacks]
    for attack in parsed:
        to_be_planted(attack)
    found = []
    for attack, target in itertools.product(parsed, grid.targets or (None,)):
        if target is not None:
            values = configuration(attack) | {"target": target}
            attack = make_attack(values.pop("name"), values, "the attack")
        highest = max(attack.target, *attack.sources, 0)
        if classes is not None and highest >= classes:
            raise InputError(
                f"{attack!r} is about class {highest} and {grid.data} has {classes} classes (0 to "
                f"{classes - 1})"
            )
        found.append(attack)
    return found


def _without_defaults(values: dict[str, Any], kind: type[msgspec.Struct]) -> dict[str, Any]:
    defaults = {
        field.name: msgspec.to_builtins(field.default)
        for field in msgspec.structs.fields(kind)
        if field.default is not msgspec.NODEFAULT
    }
    missing = object()
    return {
        name: value
        for name, value in values.items()
        if name in kind.__struct_fields__ and _plain(value) != _plain(defaults.get(name, missing))
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def refuse_unknown(fields: Any, kind: type[msgspec.Struct], where: str) -> None:
    """Refuses the first key of a table that ``kind`` has no field for, with the nearest name.

    Raises:
        InputError: there is one; the message begins with ``where``.
    """
    if not isinstance(fields, dict):
        return
    names = kind.__struct_fields__
    for name in fields:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"perhaps you meant {near[0]!r}" if near else f"known: {', '.join(names)}"
            raise InputError(f"{where} has an unknown key {name!r}; {hint}")
