from pathlib import Path

import msgspec
import pytest

from bezoar.errors import InputError
from bezoar.pools import plan, read_spec, recipe_for
from bezoar.pools.spec import Grid, PoolSpec
from bezoar.recipe import Recipe

CLEAN = Grid(data="digits", networks=("bezoar:small-cnn",), seeds=(0, 1, 2, 3))
ATTACKED = Grid(
    data="digits",
    networks=("bezoar:small-cnn",),
    attacks=("bad-nets:size=2", "blend:ratio=0.3"),
    targets=(3, 7),
    rates=(0.1, 0.05),
    seeds=(0, 1),
)


def spec(*grids, **options):
    return PoolSpec(grid=grids, **options)


def test_a_grid_is_every_combination_of_its_lists():
    jobs = [one.job for one in plan(spec(CLEAN, ATTACKED))]
    clean = [job for job in jobs if job.attack is None]
    attacked = [job for job in jobs if job.attack]
    assert len(clean) == 4 and len(attacked) == 2 * 2 * 2 * 2
    assert jobs == clean + attacked, "clean ones come first: they are twins and surrogates"
    found = {(j.attack["name"], j.attack["target"], j.rate, j.seed) for j in attacked}
    assert len(found) == 16
    assert {j.attack["size"] for j in attacked if j.attack["name"] == "bad-nets"} == {2}
    assert len({job.name for job in jobs}) == 20


def test_missing_clean_twins_are_added():
    jobs = [one.job for one in plan(spec(ATTACKED))]
    clean = [job for job in jobs if job.attack is None]
    assert [job.seed for job in clean] == [0, 1]
    assert {job.twin.name for job in jobs} == {job.name for job in clean}


def test_a_model_that_two_grids_name_is_made_once():
    assert len(plan(spec(CLEAN, CLEAN))) == 4


def test_the_halves_share_every_group():
    planned = plan(spec(CLEAN, ATTACKED))
    for attack in (None, "bad-nets", "blend"):
        halves = [o.half for o in planned if (o.job.attack or {"name": None})["name"] == attack]
        assert halves.count("development") == halves.count("held-out")


def test_halves_stay_when_grids_are_added():
    before = {one.job.name: one.half for one in plan(spec(CLEAN, ATTACKED))}
    later = msgspec.structs.replace(ATTACKED, targets=(1,))
    after = {one.job.name: one.half for one in plan(spec(CLEAN, ATTACKED, later))}
    assert before.items() <= after.items() and len(after) == len(before) + 8


def test_halves_stay_when_a_clean_grid_is_added_to_models_with_twins_of_their_own():
    own = msgspec.structs.replace(ATTACKED, seeds=(0, 1, 2, 3))
    before = {one.job.name: one.half for one in plan(spec(own))}
    for later in (
        msgspec.structs.replace(CLEAN, seeds=(10,)),
        msgspec.structs.replace(ATTACKED, seeds=(11,), half="held-out"),
    ):
        after = {one.job.name: one.half for one in plan(spec(own, later))}
        assert before.items() <= after.items() and len(after) > len(before)


def test_a_grid_can_be_put_into_one_half():
    planned = plan(spec(msgspec.structs.replace(CLEAN, half="held-out")))
    assert {one.half for one in planned} == {"held-out"}


def test_names_tell_what_differs_and_change_with_it():
    (job,) = (one.job for one in plan(spec(msgspec.structs.replace(CLEAN, seeds=(5,)))))
    assert job.name.startswith("digits-small-cnn-clean-")
    for change in ({"seed": 6}, {"recipe": Recipe(epochs=3)}, {"train_images": 100}):
        assert msgspec.structs.replace(job, **change).name != job.name


@pytest.mark.parametrize("name", ["train_images", "test_images"])
def test_no_image_is_not_all_of_them(name):
    with pytest.raises(InputError, match=f"{name} is 0; expected at least 1"):
        msgspec.structs.replace(spec(CLEAN), **{name: 0})
    (job,) = (one.job for one in plan(spec(msgspec.structs.replace(CLEAN, seeds=(5,)))))
    with pytest.raises(InputError, match=f"{name} is -5; expected at least 1"):
        msgspec.structs.replace(job, **{name: -5})


def test_crops_and_flips_follow_the_data():
    assert recipe_for("cifar10").flip and recipe_for("cifar10").crop_padding == 4
    assert not recipe_for("gtsrb").flip and not recipe_for("digits").flip
    assert recipe_for("cifar10", {"flip": False, "epochs": 3}) == Recipe(
        epochs=3, flip=False, crop_padding=4
    )


def test_the_number_of_classes_is_filled_in():
    grid = msgspec.structs.replace(ATTACKED, attacks=("bad-nets:mode=all-to-all",), targets=())
    (attack,) = {str(o.job.attack["num_classes"]) for o in plan(spec(grid)) if o.job.attack}
    assert attack == "10"


def test_a_spec_is_read_from_toml(tmp_path):
    file = tmp_path / "pool.toml"
    file.write_text(
        'precision = "float16"\n[recipe]\nepochs = 2\n[[grid]]\ndata = "digits"\n'
        'networks = ["bezoar:small-cnn"]\narguments = { width = 8 }\nseeds = [1, 2]\n'
    )
    first, second = (one.job for one in plan(read_spec(file)))
    assert (first.seed, second.seed, first.recipe.epochs) == (1, 2, 2)
    assert first.arguments == {"width": 8} and first.precision == "float16"


GRID = '[[grid]]\ndata = "digits"\nnetworks = ["bezoar:small-cnn"]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "missing required field `grid`"),
        ("epochs = 3\n" + GRID, "unknown key 'epochs'"),
        (GRID + 'target = 3\nattacks = ["blend"]\n', "unknown key 'target'; perhaps.*'targets'"),
        ("[recipe]\nepoch = 3\n" + GRID, "recipe has an unknown key 'epoch'; perhaps.*'epochs'"),
        (GRID + "recipe = { flips = true }\n", "grid 1: recipe.*'flips'; perhaps.*'flip'"),
        (GRID + 'seeds = ["a"]\n', r"grid\[0\].seeds\[0\]"),
        ("[[grid]\n", "no valid TOML"),
    ],
)
def test_a_wrong_file_names_its_fault(tmp_path, text, message):
    file = tmp_path / "pool.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_spec(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.toml cannot be read"):
        read_spec(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rates": (0.0,)}, "poison rate 0.0 must be greater than 0"),
        ({"rates": (1.5,)}, "poison rate 1.5"),
        ({"rates": ()}, "rates is empty"),
        ({"seeds": ()}, "seeds is empty"),
        ({"targets": (10,)}, "class 10 and digits has 10 classes"),
        ({"attacks": ("bad-net",)}, "perhaps you meant 'bad-nets'"),
        ({"attacks": ("bad-nets:length=2",)}, "length"),
        ({"recipe": {"epochs": 0}}, "epochs is 0"),
        ({"recipe": {"epochs": "many"}}, "epochs"),
    ],
)
def test_a_plan_that_cannot_work_names_its_grid(change, message):
    grid = msgspec.structs.replace(ATTACKED, **change)
    with pytest.raises(InputError, match=f"grid 2: .*{message}"):
        plan(spec(CLEAN, grid))


def test_a_pool_without_grids_is_refused():
    with pytest.raises(InputError, match="no models"):
        plan(spec())


@pytest.mark.parametrize("name", ["pool/pool.toml", "pool_gpu.toml"])
def test_the_pools_of_the_benchmarks_can_be_planned(name):
    planned = plan(read_spec(Path(__file__).parents[2] / "benchmarks" / name))
    attacked = [one.job for one in planned if one.job.attack]
    assert len({job.attack["name"] for job in attacked}) >= 10
    targets = {job.attack["target"] for job in attacked if job.data == "cifar10"}
    assert targets == set(range(10))
    assert abs(sum(1 if one.half == "held-out" else -1 for one in planned)) <= 2
