"""The documentation against the code: what it names exists, and what exists is named."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import bezoar
from bezoar import cli, networks
from bezoar.attacks import Attack, attacks, parse_attack
from bezoar.commands import parsing
from bezoar.demo import MEAN, STD
from bezoar.intake import ModelDescription
from bezoar.methods import methods
from bezoar.pools import Grid, PoolSpec
from bezoar.report import glossary

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMED = {"ids": lambda page: page.relative_to(ROOT).as_posix()}


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text(name), re.DOTALL | re.MULTILINE)


def anchors(page):
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, **NAMED)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_every_page_is_in_the_navigation():
    named = re.findall(r": ([\w/-]+\.md)$", text("mkdocs.yml"), re.MULTILINE)
    docs = ROOT / "docs"
    assert sorted(named) == sorted(p.relative_to(docs).as_posix() for p in docs.rglob("*.md"))


def written_by_hand(name):
    return re.sub(r"<!-- (\w+): generated -->.*?<!-- \1: end -->", "", text(name), flags=re.DOTALL)


COMMANDS = {
    "demo": parsing.Demo,
    "inspect": parsing.Inspect,
    "scan": parsing.Scan,
    "sift": parsing.Sift,
    "synthesize": parsing.Synthesize,
    "clean": parsing.Clean,
    "evaluate": parsing.Evaluate,
    "attack": parsing.Attack,
    "attack pool": parsing.AttackPool,
    "bench run": parsing.BenchRun,
    "bench table": parsing.BenchTable,
    "generator train": parsing.GeneratorTrain,
    "generator show": parsing.GeneratorShow,
    "methods": parsing.Methods,
    "attacks": parsing.Attacks,
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


def test_every_command_that_can_end_with_1_stands_in_the_table_of_exit_codes():
    (row,) = re.findall(r"^\| 1 \|.*$", text("docs/commands.md"), re.MULTILINE)
    ending = [name for name, command in COMMANDS.items() if " 1: " in command.__doc__]
    assert {"scan", "bench run", "bench table"} <= set(ending)
    assert [name for name in ending if f"`{name}`" not in row] == []


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
        assert f"](methods/{name}.md)" in text("docs/methods.md")
        described, _, measured = text(f"docs/methods/{name}.md").partition("\n## Measured\n")
        assert len(described) > 1000 and "\n## Settings\n" in measured, name
    overview = text("docs/attacks.md")
    shared = Attack.__struct_fields__
    assert all(f"| `{field}` |" in overview for field in shared)
    for name in attacks.names():
        assert f"](attacks/{name}.md)" in overview
        own = set(attacks.get(name).__struct_fields__) - set(shared)
        assert all(f"\n| `{field}` |" in text(f"docs/attacks/{name}.md") for field in own), name


def test_no_word_is_explained_twice():
    words = re.findall(r"^- \*\*(.+?)\*\*:", written_by_hand("docs/glossary.md"), re.MULTILINE)
    own = [part.strip().lower() for word in words for part in word.split(",")]
    assert len(own) == len(set(own))
    of_reports = {word.lower() for words in glossary.ALL_WORDS.values() for word in words}
    assert not set(own) & of_reports


@pytest.mark.parametrize(
    "word",
    ["audit", "balance", "evidence", "manifest", "precaution", "re-exposed", "self-test", "sign"],
)
def test_the_glossary_explains_words_that_commands_and_reports_use(word):
    heads = re.findall(r"^- \*\*(.+?)\*\*:", text("docs/glossary.md"), re.MULTILINE)
    assert any(word in head.lower() for head in heads)


def test_the_glossary_knows_every_word_that_a_report_explains():
    tables = [value for name, value in vars(glossary).items() if re.fullmatch(r"_[A-Z_]+", name)]
    assert len(tables) == len(glossary.ALL_WORDS)
    assert all(table in glossary.ALL_WORDS.values() for table in tables)
    page = text("docs/glossary.md")
    for words in glossary.ALL_WORDS.values():
        assert all(f"\n- **{word}**: {meaning}\n" in page for word, meaning in words.items())


@pytest.fixture
def _own_registries(monkeypatch):
    for registry in (methods, attacks):
        registry.names()  # what other packages add is there before the copy is taken
        monkeypatch.setattr(registry, "_things", dict(registry._things))


@pytest.mark.usefixtures("_own_registries")
def test_the_method_of_the_contributors_page_runs_as_printed(digits, capsys):
    (example,) = (b for b in blocks("docs/contributing.md", "python") if "methods.register" in b)
    exec(example, {"__name__": "my_package.my_method"})
    before = {key: value.clone() for key, value in digits.planted.network.state_dict().items()}
    repair = bezoar.clean(digits.planted, digits.clean, method="my-method", witnesses=["tac"])
    given, new = digits.planted.network.state_dict(), repair.classifier.network.state_dict()
    assert all(torch.equal(given[key], value) for key, value in before.items())
    assert not all(torch.equal(new[key], value) for key, value in before.items())
    assert cli.run(["methods", "my-method"]) == 0
    assert "recipe.epochs = 5" in capsys.readouterr().out


@pytest.mark.usefixtures("_own_registries")
def test_the_attack_of_the_contributors_page_runs_as_printed(digits, capsys):
    (example,) = (b for b in blocks("docs/contributing.md", "python") if "attacks.register" in b)
    exec(example, {"__name__": "my_package.my_attack"})
    attack = parse_attack("my-attack:target=3,strength=0.25")
    poisoned = attack.poison(digits.clean, 0.1, seed=0)
    assert (poisoned.images.labels[poisoned.where] == 3).all()
    assert attack.stamp(torch.full((1, 1, 8, 8), 0.5)).unique().tolist() == [0.75]
    assert cli.run(["attacks", "my-attack"]) == 0
    assert "strength=0.1" in capsys.readouterr().out


def test_every_target_of_make_that_a_page_names_exists():
    rules = set(re.findall(r"^(\w+):", text("Makefile"), re.MULTILINE))
    named = set()
    for page in PAGES:
        in_blocks = "\n".join(blocks(page.relative_to(ROOT), ""))
        named |= set(re.findall(r"^make (\w+)", in_blocks, re.MULTILINE))
        named |= set(re.findall(r"`make\s(\w+)`", page.read_text(encoding="utf-8")))
    assert {"demo", "test", "measured"} <= named <= rules


def test_the_readme_installs_with_the_constraints_everywhere():
    lines = re.findall(r"pip install.*", "\n".join(blocks("README.md", "")))
    assert len(lines) == 2
    assert all("-c constraints.txt" in line for line in lines)


def test_python_of_the_readme_uses_names_that_exist():
    for name in set(re.findall(r"bezoar\.(\w+)", "\n".join(blocks("README.md", "python")))):
        assert hasattr(bezoar, name), name


@pytest.mark.parametrize("page", PAGES, **NAMED)
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
