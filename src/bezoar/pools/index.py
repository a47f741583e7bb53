"""The index of a pool: one line a model, and the half that each is in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from bezoar.attacks import Attack, load_attack
from bezoar.errors import InputError
from bezoar.intake import LoadedModel, load_model
from bezoar.pools.making import MODEL, RECORD, TRIGGER, read_record
from bezoar.pools.spec import Half, Planned
from bezoar.records import write_json

INDEX = "index.json"

Status = Literal["clean", "backdoored", "weak", "natural"]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One finished model.

    Attributes:
        name: of its folder.
        half: ``development`` models may be used to choose settings; ``held-out`` ones are for
            reports and for nothing else.
        status: ``weak`` models have an ASR below 90 %, and with ``natural`` ones the clean twin
            obeys the trigger too; neither must be counted as backdoored.
        data: the data set.
        network: the architecture.
        attack: its name; None for a clean model.
        target: the target class; None for a clean model.
        rate: poison rate; 0 for a clean model.
        seed: of everything.
        acc: clean accuracy, in [0, 1].
        asr: attack success rate; None for a clean model.
        twin: the clean twin's name; None for a clean model.
        twin_acc: the clean twin's accuracy.
        twin_asr: its ASR under the same trigger.
    """

    name: str
    half: Half
    status: Status
    data: str
    network: str
    attack: str | None = None
    target: int | None = None
    rate: float = 0.0
    seed: int = 0
    acc: float
    asr: float | None = None
    twin: str | None = None
    twin_acc: float | None = None
    twin_asr: float | None = None


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """A folder with models and their index.

    Attributes:
        folder: where it is.
        entries: its finished models.
        failed: the name of each model that could not be made, and why.
        waiting: names of models that are still to be made.
    """

    folder: Path
    entries: tuple[Entry, ...]
    failed: dict[str, str] = {}
    waiting: tuple[str, ...] = ()

    def half(self, half: Half) -> tuple[Entry, ...]:
        """The models of one half."""
        return tuple(entry for entry in self.entries if entry.half == half)

    def load(self, entry: Entry, *, device: str | None = None) -> LoadedModel:
        """The model of an entry."""
        return load_model(self.folder / entry.name / MODEL, device=device)

    def attack(self, entry: Entry) -> Attack:
        """The trigger of an entry, as it was planted.

        Raises:
            InputError: the model is clean.
        """
        if entry.attack is None:
            raise InputError(f"{entry.name} is a clean model and has no trigger")
        return load_attack(self.folder / entry.name / TRIGGER)

    def record(self, entry: Entry) -> dict[str, Any]:
        """Everything that was written down when the model was made."""
        return read_record(self.folder / entry.name)


def open_pool(folder: str | Path) -> Pool:
    """Reads the index of a pool.

    Raises:
        InputError: there is none, or it is broken.
    """
    folder = Path(folder)
    try:
        content = msgspec.json.decode((folder / INDEX).read_bytes(), type=_Index)
    except OSError as error:
        raise InputError(
            f"{folder} is no pool: {error.strerror} ({INDEX}); make one with `bezoar attack pool`"
        ) from error
    except msgspec.DecodeError as error:
        raise InputError(f"{folder / INDEX} is broken: {error}") from error
    return Pool(
        folder=folder,
        entries=content.models,
        failed=content.failed,
        waiting=content.waiting,
    )


def write_index(folder: Path, planned: tuple[Planned, ...], failed: dict[str, str]) -> Pool:
    """Reads the records of the models that are there and writes the index anew."""
    entries, waiting = [], []
    for one in planned:
        if (folder / one.job.name / RECORD).is_file():
            entries.append(_entry(read_record(folder / one.job.name), one))
        elif one.job.name not in failed:
            waiting.append(one.job.name)
    index = _Index(models=tuple(entries), failed=failed, waiting=tuple(waiting))
    write_json(folder / INDEX, msgspec.to_builtins(index))
    return Pool(folder=folder, entries=index.models, failed=failed, waiting=index.waiting)


class _Index(msgspec.Struct, frozen=True, kw_only=True):
    models: tuple[Entry, ...]
    failed: dict[str, str] = {}
    waiting: tuple[str, ...] = ()


def _entry(record: dict[str, Any], planned: Planned) -> Entry:
    job, scores, twin = planned.job, record["scores"], record["clean twin"]
    return Entry(
        name=job.name,
        half=planned.half,
        status=record["status"],
        data=job.data,
        network=job.network,
        attack=job.attack["name"] if job.attack else None,
        target=job.attack["target"] if job.attack else None,
        rate=job.rate,
        seed=job.seed,
        acc=scores["acc"]["value"],
        asr=scores["asr"]["value"] if "asr" in scores else None,
        twin=twin["name"] if twin else None,
        twin_acc=twin["acc"]["value"] if twin else None,
        twin_asr=twin["asr"]["value"] if twin else None,
    )
