"""The documentation against the code: what it names exists, and what exists is named."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch

import bezoar
from bezoar import cli, networks
from bezoar.attacks import Attack, attacks
from bezoar.demo import MEAN, STD
from bezoar.intake import ModelDescription
from bezoar.methods import methods
from bezoar.pools import Grid, PoolSpec

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text(name), re.DOTALL | re.MULTILINE)


def anchors(page):
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_every_page_is_in_the_navigation():
    named = set(re.findall(r": (\w+\.md)$", text("mkdocs.yml"), re.MULTILINE))
    assert named == {page.name for page in (ROOT / "docs").glob("*.md")}


COMMANDS = {
    "demo": cli.Demo,
    "inspect": cli.Inspect,
    "scan": cli.Scan,
    "sift": cli.Sift,
    "synthesize": cli.Synthesize,
    "clean": cli.Clean,
    "evaluate": cli.Evaluate,
    "attack": cli.Attack,
    "attack pool": cli.AttackPool,
    "bench run": cli.BenchRun,
    "bench table": cli.BenchTable,
    "generator train": cli.GeneratorTrain,
    "generator show": cli.GeneratorShow,
    "methods": cli.Methods,
    "attacks": cli.Attacks,
}
POSITIONAL = {"model", ("attack", "attack"), ("attack pool", "spec"), ("methods", "name")}
POSITIONAL |= {("bench run", "grid"), ("bench table", "grid")}
POSITIONAL |= {("attacks", "name"), ("sift", "suspects"), ("generator show", "file")}


def test_every_option_of_every_command_is_documented():
    page = text("docs/commands.md")
    for name, command in COMMANDS.items():
        assert f"\n## {name}\n" in page
        for field in dataclasses.fields(command):
            positional = bool({field.name, (name, field.name)} & POSITIONAL)
            prefix = "--no-" if field.default is True else "--"
            option = prefix + field.name.replace("_", "-")
            assert positional or option in page, f"{name}: {option}"


def test_no_page_names_an_option_that_does_not_exist():
    fields = (field for command in COMMANDS.values() for field in dataclasses.fields(command))
    known = {
        prefix + field.name.replace("_", "-")
        for field in fields
        for prefix in (("", "no-") if isinstance(field.default, bool) else ("",))
    }
    known |= {"help", "check", "slow", "strict"}  # of our scripts, pytest and mypy
    for page in PAGES:
        for option in re.findall(r"(?<![\w-])--([a-z][a-z-]+)", page.read_text(encoding="utf-8")):
            assert option in known, f"{page.name}: --{option}"


def test_every_key_of_a_pool_is_documented():
    page = text("docs/pools.md")
    for name in (*PoolSpec.__struct_fields__, *Grid.__struct_fields__):
        assert f"`{name}`" in page, name


def test_every_network_is_documented():
    for name in networks.names():
        assert f"`{name}`" in text("docs/commands.md"), name


def test_every_field_of_a_model_description_is_documented():
    page = text("docs/commands.md")
    for name in ModelDescription.__struct_fields__:
        assert f"`{name}`" in page


def test_every_method_and_attack_is_documented():
    own = [name for name in methods.names() if methods.get(name).__module__.startswith("bezoar.")]
    for name in own:
        assert f"\n## {name}\n" in text("docs/methods.md")
    page = text("docs/attacks.md")
    shared = Attack.__struct_fields__
    assert all(f"| `{field}` |" in page for field in shared)
    for name in attacks.names():
        row = re.search(rf"^\| `{name}` \|(.*)\|$", page, re.MULTILINE)
        assert row, name
        own = set(attacks.get(name).__struct_fields__) - set(shared)
        assert all(f"`{field}`" in row[1] for field in own), name


def test_the_readme_installs_with_the_constraints_everywhere():
    lines = re.findall(r"pip install.*", "\n".join(blocks("README.md", "")))
    assert len(lines) == 2
    assert all("-c constraints.txt" in line for line in lines)


def test_python_of_the_readme_uses_names_that_exist():
    for name in set(re.findall(r"bezoar\.(\w+)", "\n".join(blocks("README.md", "python")))):
        assert hasattr(bezoar, name), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_are_python(page):
    for block in blocks(page.relative_to(ROOT), "python"):
        compile(block, page.name, "exec")


def test_the_example_on_files_runs_as_printed(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "backdoored.safetensors"
    safetensors.torch.save_file(digits.planted.network.state_dict(), weights)
    (tmp_path / "backdoored.toml").write_text(
        'architecture = "bezoar:small-cnn"\nweights = "backdoored.safetensors"\n'
        f"mean = {MEAN}\nstd = {STD}\n"
    )
    for name, images in (("clean", digits.clean), ("test", digits.test)):
        np.savez(f"{name}.npz", images=images.images.numpy(), labels=images.labels.numpy())
    (example,) = (b for b in blocks("docs/python.md", "python") if "folder of the demo" in b)
    names = {}
    exec(example, names)
    assert names["finding"].ranking[0] == digits.attack.target
    assert (tmp_path / "repaired.safetensors").exists()
    assert names["scores"].asr < 0.2
