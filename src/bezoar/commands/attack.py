"""``bezoar attack``: one backdoored model, or a pool of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from bezoar.commands.exit_codes import FOUND, OK
from bezoar.commands.options import Common
from bezoar.commands.outputs import check_outputs, command_line, write_record
from bezoar.errors import InputError
from bezoar.screen import print_model, print_pool, progress_bar, say

if TYPE_CHECKING:
    from bezoar.pools import Job


@dataclass(frozen=True, kw_only=True)
class Attack(Common):
    """Train a backdoored model: for tests, self-tests and red teams.

    The folder gets the weights, model.toml, the trigger, a picture of it, and a record with ACC and
    ASR. A training that was interrupted goes on when the same command is given again.

    Exit code 0: done. 1: done, and the ASR is below 90 % or the clean twin obeys the trigger
    too. 2: input not usable.

    Attributes:
        attack: its name and parameters, such as bad-nets:target=3,size=4 (see `bezoar attacks`), or
            none for a clean model; `bezoar attack pool SPEC.toml` makes many models.
        out: the folder to make.
        data: cifar10, gtsrb, tiny-imagenet, digits, or a folder, parquet file or .npz.
        architecture: timm:NAME, torchvision:NAME, bezoar:NAME or path/to/file.py:function.
        argument: arguments of the architecture as name=value, such as width=16.
        rate: poison rate, a share of all training images.
        set: the recipe of the training as name=value, such as epochs=20 learning_rate=0.1.
        train_images: train on at most so many images.
        test_images: measure on at most so many images.
        precision: number format of the stored weights.
        twin: also train the clean twin, into the same folder's name with -twin, and measure it.
    """

    attack: tyro.conf.Positional[str]
    out: Path
    data: str = "cifar10"
    architecture: str = "bezoar:resnet-8"
    argument: tuple[str, ...] = ()
    rate: float = 0.1
    set: tuple[str, ...] = ()
    train_images: int | None = None
    test_images: int | None = None
    precision: Literal["float32", "float16"] = "float32"
    twin: bool = False

    def run(self) -> int:
        """Trains and measures the model."""
        from bezoar.pools import check_job, make_model

        if not self.out.name:
            raise InputError(f"{self.out} cannot be made; give the name of a new folder")
        job = self._job()
        if not self.out.parent.is_dir():
            raise InputError(
                f"{self.out} cannot be made: the folder {self.out.parent} does not exist"
            )
        check_outputs(self.json)
        twin = self.out.with_name(f"{self.out.name}-twin")
        with progress_bar(self.silent) as progress:
            options: dict[str, Any] = {"device": self.device, "progress": progress}
            if self.twin:
                check_job(job)  # before the twin is trained
                make_model(job.twin, twin, checkpoint=_checkpoint(twin), **options)
            record = make_model(
                job,
                self.out,
                twin=twin if self.twin else None,
                checkpoint=_checkpoint(self.out),
                picture=True,
                **options,
            )
        if not self.silent:
            print_model(record)
            say(f"Folder: {self.out}")
        write_record(self.json, record | {"command": command_line()})
        return FOUND if record["status"] in ("weak", "natural") else OK

    def _job(self) -> Job:
        from bezoar.attacks import parse_attack, to_be_planted
        from bezoar.datasets import datasets
        from bezoar.pools import Job, recipe_for

        known = datasets.get(self.data).classes if self.data in datasets.names() else None
        clean = self.attack == "none"
        attack = None if clean else to_be_planted(parse_attack(self.attack, num_classes=known))
        return Job(
            data=self.data,
            network=self.architecture,
            arguments=_pairs("--argument", self.argument),
            attack=attack,
            rate=0.0 if clean else self.rate,
            seed=self.seed,
            recipe=recipe_for(self.data, DEFAULTS, _pairs("--set", self.set)),
            train_images=self.train_images,
            test_images=self.test_images,
            precision=self.precision,
        )


@dataclass(frozen=True, kw_only=True)
class AttackPool:
    """Make clean and backdoored models as a TOML file says; see the guide for its keys.

    A pool that was interrupted goes on when the same command is given again.

    Exit code 0: all models are there. 1: some could not be made. 2: input not usable.

    Attributes:
        spec: the TOML file.
        out: the pool's folder.
        executor: local, local:N for N processes at a time, ray, ray:ADDRESS, or here for this
            process.
        threads: of each model, on Ray also a fraction of a core; 1 is best for many models.
        gpus: share of a GPU for each model; by default each sees what is there, on Ray nothing.
        device: where each model is trained; by default the accelerator if there is one.
        json: write the index as JSON to this file; - is standard output.
        quiet: no progress and no summary.
    """

    spec: tyro.conf.Positional[Path]
    out: Path
    executor: str = "local"
    threads: float = 1
    gpus: float = 0.0
    device: str | None = None
    json: str | None = None
    quiet: bool = False

    def run(self) -> int:
        """Makes the models that are not there yet."""
        import msgspec

        from bezoar.executors import make_executor
        from bezoar.pools import make_pool, read_spec

        check_outputs(self.json, inputs=(self.spec,))
        spec = read_spec(self.spec)
        executor = make_executor(self.executor, cpus_per_task=self.threads, gpus_per_task=self.gpus)
        silent = self.quiet or self.json == "-"
        with progress_bar(silent) as progress:
            pool = make_pool(
                spec,
                self.out,
                executor,
                device=self.device,
                finished=lambda _name, done, total: progress(
                    f"models ({done} of {total})", done / total
                ),
                progress=lambda name, what, share: progress(f"in work ({name}: {what})", share),
            )
        entries = msgspec.to_builtins(pool.entries)
        if not silent:
            print_pool(entries, pool.failed)
        write_record(self.json, {"kind": "pool", "models": entries, "failed": pool.failed})
        return FOUND if pool.failed else OK


DEFAULTS = {"epochs": 20, "learning_rate": 0.1, "schedule": "one-cycle", "bfloat16": True}
"""The recipe of a single model, before --set; crops and flips follow the data."""


def _checkpoint(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.checkpoint")


def _pairs(option: str, texts: tuple[str, ...]) -> dict[str, Any]:
    """name=value pairs; values that are JSON (numbers, true, lists) are taken as such."""
    import json

    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"{option} {text}: expected name=value")
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value
    return values
