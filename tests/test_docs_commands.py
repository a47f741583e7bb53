"""Every ``bezoar`` command that a page prints in a block is run as printed.

The files that it names are made first, and small. What would take too long here, or needs what is
not here, is read by the real parser instead; ``ONLY_PARSED`` says why.
"""

import fnmatch
import itertools
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import tyro
from PIL import Image

from bezoar import cli, networks
from bezoar.classifier import Classifier
from bezoar.demo import DIGITS_RECIPE, MEAN, STD
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.networks.vision import import_torchvision
from bezoar.training import fit

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^( *)```\w*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^ *(?:\.venv/bin/)?(bezoar .*)$", re.MULTILINE)

ONLY_PARSED = {
    "bezoar demo": "test_demo.py runs it and looks at all that it leaves",
    "bezoar attack * --data cifar10 *": "needs CIFAR-10, and trains for minutes",
    "bezoar generator train *": "5,000 steps of a GAN; test_cli_generator.py runs four",
    "bezoar clean * --public *": "trains a generator; test_cli_public_images.py runs it small",
    "bezoar clean * --generator *": "750 inversions; test_cli_public_images.py runs it small",
}
"""Pattern of commands → why they are not run here."""

WRITES = ("--out", "--report", "--json", "--sheet")
POOL = """
train_images = 200
test_images = 100
recipe = { epochs = 1, batch_size = 32 }
grid = [{ data = "digits", networks = ["bezoar:small-cnn"], half = "held-out" }]
"""
GRID = """
pool = "pool"
methods = ["clp"]
images = [0]
seeds = [0]
test_images = 50
"""


def printed():
    """The commands of all pages, each once."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    inside = "\n".join(block for _, block in BLOCK.findall(text)).replace("\\\n", " ")
    return list(dict.fromkeys(command.strip() for command in COMMAND.findall(inside)))


def only_parsed(command):
    return any(fnmatch.fnmatchcase(command, pattern) for pattern in ONLY_PARSED)


COMMANDS = printed()


def describe(weights):
    weights.with_suffix(".toml").write_text(
        f'architecture = "bezoar:small-cnn"\nweights = "{weights.name}"\n'
        f"arguments = {{ width = 8 }}\ninput_size = 8\nmean = {MEAN}\nstd = {STD}\n"
    )


def save_images(images, folder, *, per_class):
    """The first images of each class as PNG files, in one sub-folder for each."""
    for k in range(10):
        (folder / str(k)).mkdir(parents=True)
        for place in torch.nonzero(images.labels == k).flatten()[:per_class].tolist():
            pixels = images.images[place, 0].numpy()
            Image.fromarray(pixels).save(folder / str(k) / f"{place}.png")


@pytest.fixture(scope="module")
def files(digits, tmp_path_factory):
    """What most commands read, under the names that the pages give it."""
    folder = tmp_path_factory.mktemp("printed")
    torch.manual_seed(0)
    classifier = Classifier(networks.build("small-cnn", width=8), mean=MEAN, std=STD)
    poisoned = digits.attack.poison(digits.train, 0.1, seed=0).images
    fit(classifier, poisoned, DIGITS_RECIPE, seed=0)
    for name, save in (
        ("model.pt", torch.save),
        ("bezoar-demo/backdoored.safetensors", safetensors.torch.save_file),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        save(classifier.network.state_dict(), folder / name)
        describe(folder / name)
    for name, images in (("clean", digits.clean.sample(100, seed=0)), ("test", digits.test)):
        arrays = {"images": images.images.numpy(), "labels": images.labels.numpy()}
        np.savez(folder / "bezoar-demo" / name, **arrays)
    save_images(digits.clean, folder / "clean_images", per_class=10)
    save_images(digits.test, folder / "log_of_last_week", per_class=2)
    (folder / "models.csv").write_text("model,images\nmodel.toml,clean_images\n")
    (folder / "spec.toml").write_text(POOL)
    (folder / "grid.toml").write_text(GRID)
    return folder


def make_weights():
    """Weights alone, of an architecture that a page names, and images that it answers rightly."""
    try:
        torchvision = import_torchvision()
    except InputError:
        pytest.skip("torchvision is not installed (extra 'vision')")
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=4)
    pixels = torch.randint(256, (40, 3, 16, 16), dtype=torch.uint8)
    normalised = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    logits = Classifier(network, **normalised).logits(ImageSet(pixels))
    with torch.no_grad():
        network.fc.bias -= logits.mean(0)  # else it gives one answer to all
    torch.save(network.state_dict(), "weights.pt")
    for place, k in enumerate((logits - logits.mean(0)).argmax(1).tolist()):
        Path("clean", str(k)).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels[place].permute(1, 2, 0).numpy())
        image.save(Path("clean", str(k), f"{place}.png"))


def make_generator():
    arguments = "--images bezoar-demo/test.npz --out generator.toml --size 8 8 --steps 2 --width 4"
    assert cli.run(["generator", "train", *arguments.split(), "--quiet"]) == 0


def make_pool():
    assert cli.run(["attack", "pool", "spec.toml", "--out", "pool", "--executor", "here"]) == 0


def make_results():
    make_pool()
    assert cli.run(["bench", "run", "grid.toml", "--executor", "here"]) == 0


MADE = {
    "weights.pt": make_weights,
    "generator.toml": make_generator,
    "bench run": make_pool,
    "bench table": make_results,
}
"""Words of a command → what makes the files that few commands need."""


@pytest.fixture
def place(files, tmp_path, monkeypatch):
    """A folder with (links to) the files, which a command may fill."""
    folder = tmp_path / "here"
    shutil.copytree(files, folder, copy_function=os.link)  # bezoar never writes into a file
    monkeypatch.chdir(folder)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("command", [c for c in COMMANDS if not only_parsed(c)])
def test_a_printed_command_runs(command, capsys):
    for words, make in MADE.items():
        if words in command:
            make()
    arguments = shlex.split(command)[1:]
    capsys.readouterr()
    code = cli.run(arguments)
    assert code in (0, 1), capsys.readouterr().err
    refused = arguments[0] == "clean" and code == 1  # a repair that costs too much is not written
    for option, value in itertools.pairwise(arguments):
        if option in WRITES and not refused:
            assert Path(value).exists(), value


@pytest.mark.parametrize("command", [c for c in COMMANDS if only_parsed(c)])
def test_a_command_that_is_not_run_here_is_understood(command, monkeypatch):
    parse, parsed = tyro.cli, []

    class Parsed:
        def run(self):
            return 0

    def only_parse(*arguments, **options):
        parsed.append(parse(*arguments, **options))
        return Parsed()

    monkeypatch.setattr(tyro, "cli", only_parse)
    assert cli.run(shlex.split(command)[1:]) == 0
    assert parsed


def test_the_pages_print_commands_and_none_is_left_out():
    assert len(COMMANDS) > 20
    kinds = {command.split()[1] for command in COMMANDS}
    assert kinds >= {"inspect", "scan", "clean", "sift", "evaluate", "attack", "bench", "methods"}


@pytest.mark.parametrize("pattern", ONLY_PARSED)
def test_no_reason_is_given_for_a_command_that_no_page_prints(pattern):
    assert fnmatch.filter(COMMANDS, pattern)
