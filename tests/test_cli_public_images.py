"""``bezoar clean`` with public images or a generator: options, exit codes, record, page."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from public_methods import Borrow
from test_cli_without_images import Text

from bezoar import cli
from bezoar.generators.generator_files import write_generator
from bezoar.generators.public_generator import PublicGenerator
from bezoar.images import ImageSet
from bezoar.methods import methods
from bezoar.networks.image_generators import ImageGenerator

UNMEASURED = "Repaired, accuracy not measured"


@pytest.fixture(autouse=True)
def borrow(monkeypatch):
    monkeypatch.setitem(methods._things, "borrow", Borrow)
    Borrow.given.clear()


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    """A folder of colour images, wider than high, in two sub-folders; the left quarter is white."""
    folder = tmp_path_factory.mktemp("streets")
    drawn = np.random.default_rng(0)
    for index in range(24):
        pixels = drawn.integers(0, 200, (16, 32, 3), dtype=np.uint8)
        pixels[:, :8] = 255
        inside = folder / ("day" if index % 2 else "night")
        inside.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(inside / f"{index}.png")
    (folder / "day" / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def generator_file(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ImageGenerator((1, 8, 8), latent=6, width=4)
    origin = {"kind": "toy", "count": 7}
    write_generator(
        PublicGenerator(network, 6, (1, 8, 8), apart=True, origin=origin), tmp_path / "g.toml"
    )
    return tmp_path / "g.toml"


@pytest.fixture
def clean(model_files, tmp_path, capsys):
    """(arguments…) → exit code, standard output, standard error, the record."""

    def call(*arguments, method="borrow", model="planted.toml"):
        capsys.readouterr()
        outputs = ("--out", tmp_path / "out.safetensors", "--json", tmp_path / "out.json")
        given = ("clean", model_files / model, "--method", method, *outputs, *arguments)
        code = cli.run([str(argument) for argument in given])
        said = capsys.readouterr()
        path = tmp_path / "out.json"
        return code, said.out, said.err, json.loads(path.read_text()) if path.exists() else None

    return call


def test_public_images_are_cut_to_what_the_model_takes(clean, streets, tmp_path):
    code, out, err, record = clean("--public", streets)
    assert (code, err) == (0, "")
    (given,) = Borrow.given
    assert isinstance(given, ImageSet) and given.shape == (1, 8, 8) and given.labels is None
    assert len(given) == 24 and int((given.images == 255).sum()) == 0, "the centre is left"
    assert record["public"] == {
        "kind": "images",
        "count": 24,
        "sha256": given.sha256(),
        "source": str(streets),
    }
    assert record["written"] and record["images"] is None
    (left_out,) = [line for line in record["notices"] if "notes.txt" in line]
    assert left_out.startswith("Public images: ") and f"Note: {left_out}" in out
    shown = Text((tmp_path / "out.report.html").read_text())
    assert shown.headings[0] == UNMEASURED
    assert "Images that the repair was made with" in shown.headings
    for part in ("Number of public images 24", f"Public images {streets}", "images kept 93"):
        assert part.lower() in shown.text.lower(), part


def test_public_images_can_be_stretched_and_fewer(clean, streets):
    code, _, _, record = clean("--public", streets, "--public-resize", "stretch")
    assert code == 0 and int((Borrow.given[0].images == 255).sum()) > 0
    code, _, _, record = clean("--public", streets, "--public-limit", "10")
    assert code == 0 and record["public"]["count"] == len(Borrow.given[1]) == 10


def test_images_of_the_task_judge_and_their_notes_and_those_of_others_are_told(
    clean, streets, model_files
):
    code, out, _, record = clean("--public", streets, "--images", model_files / "clean.npz")
    assert code == 0 and "Repaired, signs of a backdoor left: accuracy 99.0 % before" in out
    assert record["fitted_on"] == {"count": 0, "of": 300}
    assert out.count("Note: Public images: ") == 1
    assert len(Borrow.given[0]) == 24


def test_a_generator_is_loaded_and_told_of(clean, generator_file, tmp_path):
    code, _, err, record = clean("--generator", generator_file)
    assert (code, err) == (0, "")
    (given,) = Borrow.given
    assert isinstance(given, PublicGenerator) and given.shape == (1, 8, 8)
    told = record["public"]
    assert told["source"] == str(generator_file) and told["apart"] is True
    assert told["origin"]["count"] == 7 and told["independence"] == given.independence
    shown = Text((tmp_path / "out.report.html").read_text())
    assert f"Generator {generator_file}" in shown.text and "Public images" not in shown.headings


def test_a_generator_and_public_images_go_together(clean, streets, generator_file):
    code, _, _, record = clean("--generator", generator_file, "--public", streets)
    assert code == 0
    (given,) = Borrow.given
    assert isinstance(given, PublicGenerator) and len(given.images) == 24
    assert given.images.labels is None
    told = record["public"]
    assert told["kind"] == "generator" and told["images"]["count"] == 24
    assert str(generator_file) in told["source"] and str(streets) in told["source"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), r"needs public images"),
        (("--public", "streets", "--public-limit", "0"), "--public-limit is 0; expected at least"),
        (("--public", "streets", "--public-resize", "none"), "pass --public-resize"),
        (("--public", "nowhere"), "nowhere"),
        (("--generator", "nowhere.toml"), "nowhere.toml"),
        (("--public", "streets", "--method", "tac"), "'tac' takes no public images"),
    ],
)
def test_what_cannot_be_used_is_one_sentence_before_any_work(
    arguments, message, clean, streets, generator_file, tmp_path
):
    places = {"streets": streets, "g.toml": generator_file}
    before = sorted(tmp_path.iterdir())
    code, out, err, _ = clean(*(places.get(argument, argument) for argument in arguments))
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1
    assert Borrow.given == [] and sorted(tmp_path.iterdir()) == before


def test_a_generator_of_another_size_is_refused(clean, tmp_path):
    network = ImageGenerator((3, 8, 8), latent=6, width=4)
    write_generator(PublicGenerator(network, 6, (3, 8, 8)), tmp_path / "colour.toml")
    code, _, err, _ = clean("--generator", tmp_path / "colour.toml")
    assert code == 2 and "generator makes images of 3x8x8 and the network takes 1x8x8" in err


@pytest.mark.parametrize("name", ["g.toml", "g.safetensors"])
def test_no_part_of_a_generator_is_overwritten(name, clean, generator_file):
    before = generator_file.with_name(name).read_bytes()
    code, _, err, _ = clean(
        "--generator", generator_file, "--report", generator_file.with_name(name)
    )
    assert code == 2 and "never overwritten" in err
    assert generator_file.with_name(name).read_bytes() == before


def test_the_list_of_methods_says_what_is_needed(capsys):
    assert cli.run(["methods", "borrow"]) == 0
    assert "needs: public images" in capsys.readouterr().out
