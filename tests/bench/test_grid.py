"""What a grid may say, and what it may not."""

import msgspec
import pytest

from bezoar.bench import read_grid
from bezoar.bench.grid import BenchGrid, chosen, open_grid_pool
from bezoar.errors import InputError
from bezoar.pools import Entry, Grid, Pool, PoolSpec, open_pool, plan

pytestmark = pytest.mark.xdist_group("bench")  # they share a pool

BAD = {
    "a misspelt key": ({"metods": "[1]"}, "unknown key 'metods'; perhaps you meant 'methods'"),
    "an unknown method": ({"methods": '["rmp"]'}, "no method 'rmp'; perhaps you meant 'rnp'"),
    "an unknown setting": ({"methods": '["ft:epochs=3"]'}, "with one of recipe.epochs"),
    "a value that does not fit": ({"methods": '["ft:recipe.epochs=x"]'}, "recipe.epochs"),
    "no method": ({"methods": "[]"}, "methods is empty"),
    "a budget below zero": ({"images": "[-1]"}, "images is -1"),
    "a budget twice": ({"images": "[60, 60]"}, "images holds a value twice"),
    "no images for methods that need them": (
        {"images": "[0]", "methods": '["ft"]'},
        "images holds 0, and every method of this grid needs clean images: ft",
    ),
    "images for nobody but one": ({"images": "[0]"}, "ft:recipe.epochs=1 need clean images"),
    "public images missing": ({"methods": '["fred"]'}, "fred needs public images"),
    "public images for nobody": ({"public": '"x"'}, "this grid has none"),
    "no test images": ({"test_images": "0"}, "test_images is 0"),
    "a rate of two": ({"rates": "[2.0]"}, "poison rate 2.0"),
    "no control": ({"control_epochs": "[]"}, "control_epochs is empty; give at least one"),
    "a control of no length": ({"control_epochs": "[0]"}, "control_epochs"),
    "one method under two spellings": (
        {"methods": '["clp", "ft:recipe.epochs=1", "clp:"]'},
        "methods holds one method twice: clp and clp:",
    ),
    "an oracle for a method without a threshold": (
        {"oracle": '["ft"]'},
        "oracle: no method 'ft' of this grid sweeps a threshold; there are clp",
    ),
    "an unknown half": ({"halves": '["both"]'}, "halves"),
    "text for a list": ({"seeds": '"0"'}, "seeds"),
}


def test_a_pool_that_was_described_otherwise_lends_only_what_the_grid_describes(
    tmp_path, monkeypatch
):
    def described(*targets):
        grid = Grid(
            data="digits",
            networks=("bezoar:small-cnn",),
            attacks=("bad-nets:size=2",),
            targets=targets,
            rates=(0.1,),
            seeds=(0,),
        )
        spec = PoolSpec(grid=(grid,))
        return BenchGrid(pool=spec, methods=("clp",)), plan(spec)

    def entry(one):
        attack = one.job.attack["name"] if one.job.attack else None
        return Entry(
            name=one.job.name, half=one.half, status="clean", data="digits", network="n",
            attack=attack, acc=0.9,
        )  # fmt: skip

    _, before = described(1)
    made = Pool(folder=tmp_path, entries=tuple(map(entry, before)), failed={"another": "why"})
    monkeypatch.setattr("bezoar.bench.grid.open_pool", lambda _folder: made)
    now, planned = described(1, 5)
    found = open_grid_pool(now, tmp_path)
    (new,) = (one.job.name for one in planned if one.job.attack and one.job.attack["target"] == 5)
    assert found.entries == made.entries and found.waiting == (new,) and found.failed == {}
    changed, _ = described(5)
    found = open_grid_pool(changed, tmp_path)
    assert [one.attack for one in found.entries] == [None] and found.waiting == (new,)
    other = msgspec.structs.replace(
        changed, pool=PoolSpec(grid=(msgspec.structs.replace(changed.pool.grid[0], seeds=(7,)),))
    )
    with pytest.raises(InputError, match="no model that this grid describes; call `bezoar bench"):
        open_grid_pool(other, tmp_path)


@pytest.mark.parametrize("what", BAD)
def test_bad_grids_are_refused_before_any_work(what, write_grid):
    changes, message = BAD[what]
    with pytest.raises(InputError, match=message) as caught:
        read_grid(write_grid(**changes))
    assert "grid.toml" in str(caught.value)


def test_a_missing_file_is_said():
    with pytest.raises(InputError, match="cannot be read"):
        read_grid("nowhere.toml")


def test_filters_choose_models(grid, pool_folder, write_grid):
    pool = open_pool(pool_folder)
    assert len(chosen(grid, pool)) == 3
    only = chosen(read_grid(write_grid(status='["backdoored"]')), pool)
    assert [entry.attack for entry in only] == ["bad-nets"]
    named = chosen(read_grid(write_grid(models='["*clean*"]')), pool)
    assert {entry.status for entry in named} == {"clean"}
    attacks = chosen(read_grid(write_grid(attacks='["bad-nets"]')), pool)
    assert len(attacks) == 3, "clean models stay whatever attacks are chosen"


FILTERS = {
    "attacks": ('["blend"]', "attacks: the pool has no 'blend'; it has bad-nets"),
    "data": ('["cifar10"]', "data: the pool has no 'cifar10'; it has digits"),
    "models": ('["*wanet*"]', "models: no model of the pool matches"),
    "networks": ('["timm:*"]', "networks: no model of the pool matches"),
    "halves": ('["development"]', "leave no model"),
}


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_that_matches_nothing_is_an_error(name, pool_folder, write_grid):
    value, message = FILTERS[name]
    with pytest.raises(InputError, match=message.replace("*", r"\*")):
        chosen(read_grid(write_grid(**{name: value})), open_pool(pool_folder))
