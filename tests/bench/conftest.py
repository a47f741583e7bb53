"""A small pool of digit networks, and an executor that runs in this process."""

import json
import shutil

import pytest
from digit_pool import POOL

from bezoar.bench import read_grid
from bezoar.executors import make_executor
from bezoar.pools import make_pool, read_spec

GRID = """
pool = "pool"
methods = ["ft:recipe.epochs=1", "clp"]
images = [60]
seeds = [0]
test_images = 200
control_epochs = [1, 3]
"""


@pytest.fixture(scope="session")
def pool_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench") / "pool"
    (folder.parent / "pool.toml").write_text(POOL)
    pool = make_pool(read_spec(folder.parent / "pool.toml"), folder, make_executor("here"))
    assert not pool.failed
    assert {entry.status for entry in pool.entries} == {"clean", "backdoored"}
    return folder


@pytest.fixture
def pool_without_twin(pool_folder, tmp_path):
    """The pool after somebody has deleted the clean twin of its backdoored model."""
    pool = tmp_path / "without twin"
    shutil.copytree(pool_folder, pool)
    index = json.loads((pool / "index.json").read_text())
    (twin,) = filter(None, (one["twin"] for one in index["models"]))
    shutil.rmtree(pool / twin)
    index["models"] = [one for one in index["models"] if one["name"] != twin]
    (pool / "index.json").write_text(json.dumps(index))
    return pool


@pytest.fixture
def write_grid(pool_folder, tmp_path):
    """Writes a grid's file beside (a link to) the pool; changes replace whole lines."""

    def write(**changes):
        (tmp_path / "pool").unlink(missing_ok=True)
        (tmp_path / "pool").symlink_to(pool_folder)
        lines = dict(line.split(" = ", 1) for line in GRID.strip().splitlines())
        lines |= {key: value for key, value in changes.items() if value is not None}
        file = tmp_path / "grid.toml"
        file.write_text("".join(f"{key} = {value}\n" for key, value in lines.items()))
        return file

    return write


@pytest.fixture
def grid(write_grid):
    return read_grid(write_grid())
