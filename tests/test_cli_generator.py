"""``bezoar generator train`` and ``generator show`` as users run them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from bezoar import cli
from bezoar.demo import load_digits
from bezoar.generators import load_generator

QUICK = ("--steps", "4", "--width", "4", "--latent", "6")


@pytest.fixture
def train(tmp_path, capsys):
    """(arguments…) → exit code, standard output, standard error."""
    digits = load_digits(seed=11)[0]
    np.savez(tmp_path / "public.npz", images=digits.images.numpy())

    def call(*arguments, out="g.toml", size=(8, 8)):
        capsys.readouterr()
        given = ("generator", "train", "--images", tmp_path / "public.npz", "--out", tmp_path / out)
        given += ("--size", *size, *QUICK, *arguments)
        code = cli.run([str(argument) for argument in given])
        return code, *capsys.readouterr()

    return call


def test_a_generator_its_sheet_and_its_record(train, tmp_path):
    code, out, err = train("--json", tmp_path / "g.json", "--seed", "3", "--no-flip")
    assert (code, err) == (0, "")
    names = ["g.json", "g.png", "g.safetensors", "g.toml", "public.npz"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    record = json.loads((tmp_path / "g.json").read_text())
    origin = record["origin"]
    assert record["kind"] == "generator" and record["shape"] == [1, 8, 8] and record["apart"]
    assert (origin["seed"], origin["steps"], origin["settings"]["flip"]) == (3, 4, False)
    assert origin["images"]["source"].endswith("public.npz")
    assert origin["images"]["number"] == 1000
    assert record["independence"] in out and "losses: critic: " in out
    assert Image.open(tmp_path / "g.png").size == (512, 512)
    generator = load_generator(tmp_path / "g.toml", device=torch.device("cpu"))
    assert generator.latent == 6 and generator.critic is not None
    assert generator.origin["images"] == origin["images"]


@pytest.mark.parametrize(
    ("kind", "settings", "critic"),
    [
        ("gan", {"loss": "hinge", "width": 4, "flip": True}, True),
        ("gan-gp", {"loss": "wasserstein", "gradient_penalty": 10.0, "flip": False}, True),
        ("autoencoder", {"width": 4, "flip": True}, False),
    ],
)
def test_kinds(train, tmp_path, kind, settings, critic):
    assert train("--kind", kind, "--quiet", "--json", tmp_path / "g.json")[:2] == (0, "")
    record = json.loads((tmp_path / "g.json").read_text())
    used = record["origin"]["settings"]
    assert all(used[name] == value for name, value in settings.items())
    assert used["steps"] == 4 and used["latent"] == 6 and used.get("epochs") is None
    assert (record["critic_parameters"] is not None) == critic


def test_another_size_and_colour_and_fewer_images(train, tmp_path):
    chosen = ("--channels", "3", "--resize", "stretch", "--limit", "100")
    assert train(*chosen, "--json", tmp_path / "g.json", size=(12, 16))[0] == 0
    record = json.loads((tmp_path / "g.json").read_text())
    assert record["shape"] == [3, 12, 16] and record["origin"]["images"]["number"] == 100


def test_an_interrupted_training_goes_on(train, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bezoar.generators.curves._STEPS_TO_LOSE", 1)
    assert train("--quiet", out="whole.toml")[0] == 0

    def interrupt(_self, step, _count=[0]):  # noqa: B006 (counts over all calls)
        _count[0] += 1
        if _count[0] == 3:
            raise KeyboardInterrupt
        return counted(_self)

    from bezoar.resuming import TrainingState

    counted = TrainingState.count_step
    with monkeypatch.context() as patched:
        patched.setattr(TrainingState, "count_step", lambda self: interrupt(self, None))
        code, _, err = train("--quiet")
    assert code == 2 and "interrupted" in err
    assert (tmp_path / ".g.toml.checkpoint").exists() and not (tmp_path / "g.toml").exists()
    assert train("--quiet")[0] == 0
    assert not (tmp_path / ".g.toml.checkpoint").exists()
    weights = [(tmp_path / f"{name}.safetensors").read_bytes() for name in ("g", "whole")]
    assert weights[0] == weights[1]


def test_show_tells_the_facts_and_writes_the_sheet(train, tmp_path, capsys):
    assert train("--quiet")[0] == 0
    (tmp_path / "g.png").unlink()
    capsys.readouterr()
    show = ["generator", "show", str(tmp_path / "g.toml")]
    assert cli.run([*show, "--json", str(tmp_path / "s.json")]) == 0
    out = capsys.readouterr().out
    record = json.loads((tmp_path / "s.json").read_text())
    assert "without the suspect model" in out and "latent: 6" in out
    assert record["kind"] == "generator" and record["origin"]["steps"] == 4
    assert (tmp_path / "g.png").exists()
    assert cli.run([*show, "--sheet", str(tmp_path / "other.png"), "--quiet"]) == 0
    assert (tmp_path / "other.png").read_bytes() == (tmp_path / "g.png").read_bytes()


def test_bad_input_is_one_sentence_before_the_work(train, tmp_path, monkeypatch):
    monkeypatch.setattr("bezoar.generators.train_generator", None)
    before = sorted(tmp_path.iterdir())
    cases = [
        (train(out="g.pt"), "end it in .toml"),
        (train(out="none/g.toml"), "does not exist"),
        (train("--limit", "0"), "--limit is 0"),
        (train("--steps", "0"), "steps is 0"),
        (train("--width", "0"), "width is 0"),
        (train(size=(2, 8)), "size of the generator is 2"),
        (train("--resize", "none", size=(9, 9)), "expected 9 wide and 9 high"),
        (train("--images", tmp_path / "nothing"), "nothing"),
        (train("--json", tmp_path / "g.png"), "given for two outputs"),
        (train("--device", "nonsense"), "nonsense"),
    ]
    for (code, out, err), said in cases:
        assert (code, out) == (2, ""), said
        assert err.startswith("bezoar: ") and err.count("\n") == 1 and said in err, err
    assert sorted(tmp_path.iterdir()) == before


def test_show_refuses_what_is_no_generator_and_keeps_its_inputs(train, tmp_path, capsys):
    assert train("--quiet")[0] == 0
    weights = (tmp_path / "g.safetensors").read_bytes()
    for arguments in (("--sheet", "g.safetensors"), ("--sheet", "g.toml")):
        given = [arguments[0], str(tmp_path / arguments[1])]
        assert cli.run(["generator", "show", str(tmp_path / "g.toml"), *given]) == 2
        assert "never overwritten" in capsys.readouterr().err
    assert (tmp_path / "g.safetensors").read_bytes() == weights
    assert cli.run(["generator", "show", str(tmp_path / "none.toml")]) == 2
