import json
import re

import pytest
import torch

from bezoar import cli

SMALL = [
    *("--data", "digits", "--architecture", "bezoar:small-cnn", "--argument", "width=16"),
    *("--set", "epochs=8", "batch_size=64", "clip_norm=5"),
]


def run(*arguments):
    return cli.run([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("attack") / "model"
    record = out.with_suffix(".json")
    code = run(
        "attack", "bad-nets:target=3,size=2", "--out", out, *SMALL, "--twin", "--quiet", "--json",
        record,
    )  # fmt: skip
    assert code == 0
    return out, json.loads(record.read_text())


def test_a_backdoored_model_is_written_with_all_that_belongs_to_it(made):
    out, record = made
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("model.toml", "weights.safetensors", "trigger.safetensors", "trigger.png"),
        "record.json",
    }
    assert record["status"] == "backdoored" and record["scores"]["asr"]["value"] >= 0.9
    assert record["clean twin"]["asr"]["value"] < 0.3
    assert "bezoar" in record["command"]
    assert not list(out.parent.glob(".*")), "no checkpoint and no half folder stay"


def test_other_commands_take_its_files(made, tmp_path, capsys):
    out, record = made
    from bezoar.datasets import open_dataset

    test = open_dataset("digits", "test")
    import numpy as np

    np.savez(tmp_path / "test.npz", images=test.images.numpy(), labels=test.labels.numpy())
    trigger = out / "trigger.safetensors"
    arguments = ["--images", tmp_path / "test.npz", "--trigger", trigger, "--json", "-"]
    assert run("evaluate", out / "model.toml", *arguments) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert scores["acc"] == record["scores"]["acc"] and scores["asr"] == record["scores"]["asr"]
    assert run("inspect", out / "model.toml", "--quiet") == 0
    twin = out.with_name("model-twin")
    assert run("evaluate", twin / "model.toml", *arguments) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert scores["asr"] == record["clean twin"]["asr"]


def test_the_same_command_again_only_reads(made):
    out, _ = made
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert run("attack", "bad-nets:target=3,size=2", "--out", out, *SMALL, "--quiet") == 0
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_a_clean_model_can_be_made(tmp_path, capsys):
    assert run("attack", "none", "--out", tmp_path / "model", *SMALL, "--json", "-") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["status"] == "clean" and "asr" not in record["scores"]
    assert not (tmp_path / "model" / "trigger.safetensors").exists()


def test_a_weak_attack_is_told_apart(tmp_path, capsys):
    code = run("attack", "blend:ratio=0.01", "--rate", "0.002", "--out", tmp_path / "model", *SMALL)
    assert code == 1
    assert "do not count this model as a backdoored one" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bad-net"], "perhaps you meant 'bad-nets'"),
        (["bad-nets:length=3"], "length"),
        (["bad-nets:target=10"], "class 10 and there are 10 classes"),
        (["bad-nets:size=9"], "does not fit"),
        (["bad-nets", "--rate", "0"], "poison rate 0.0 must be greater than 0"),
        (["bad-nets", "--rate", "1.1"], "poison rate 1.1"),
        (["bad-nets", "--rate", "0.0001"], "less than one image"),
        (["bad-nets", "--rate", "1"], "only .* are not of the target class"),
        (["none", "--set", "epochs=0"], "epochs is 0"),
        (["none", "--set", "epoch=3"], "epoch"),
        (["none", "--set", "epochs"], "expected name=value"),
        (["none", "--argument", "breadth=3"], "breadth"),
        (["none", "--data", "digit"], "digits"),
        (["none", "--argument", "num_classes=many"], "num_classes is 'many'; expected a whole"),
        (["sig", "--rate", "0.5", "--twin"], "only .* are of the target class"),
        (["trojan-square:share=0.95"], "a square of 8 pixels, 1 from the edge, does not fit"),
        (["several:triggers=l2-inv:steps=3+bad-nets:size=9"], "does not fit"),
        (["missing.safetensors"], "missing.safetensors"),
    ],
)
def test_bad_input_is_refused_before_training(tmp_path, capsys, monkeypatch, arguments, message):
    import bezoar.attacks.attack as attack
    import bezoar.pools.making as making

    def never(*args, **options):
        raise AssertionError("training began")

    monkeypatch.setattr(attack, "fit", never)
    monkeypatch.setattr(making, "fit", never)
    first, *rest = arguments
    code = run("attack", first, "--out", tmp_path / "model", *SMALL, *rest)
    assert code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "model").exists() and not list(tmp_path.glob(".*"))


def test_test_images_that_do_not_fit_are_told_before_training(tmp_path, capsys, monkeypatch):
    import numpy as np
    from PIL import Image

    def folder(name, **parts):
        for split, (side, classes) in parts.items():
            for label in classes:
                for number in range(4):
                    place = tmp_path / name / split / label / f"{number}.png"
                    place.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(np.full((side, side), 60 * number, np.uint8)).save(place)
        return tmp_path / name

    def never(*args, **options):
        raise AssertionError("training began")

    monkeypatch.setattr("bezoar.attacks.attack.fit", never)
    cases = {
        "size": (folder("size", train=(8, "ab"), test=(10, "ab")), "1 x 8 x 8 .* 1 x 10 x 10"),
        "one": (folder("one", train=(8, "ab"), test=(8, "a")), "every image is of the target"),
    }
    for name, (data, message) in cases.items():
        options = ("--data", data, "--rate", "0.5", "--out", tmp_path / f"{name}-model")
        assert run("attack", "bad-nets:size=2", *options, "--quiet") == 2
        assert re.search(message, capsys.readouterr().err)
        assert not (tmp_path / f"{name}-model").exists()


def test_a_learned_trigger_s_file_is_not_planted_again(tmp_path, capsys):
    from bezoar.attacks import parse_attack, save_attack

    attack = parse_attack("smooth:target=1")
    held = attack.holding({"pattern": torch.zeros(1, 8, 8)}, (1, 8, 8))
    save_attack(held, tmp_path / "trigger.safetensors", (1, 8, 8))
    assert run("attack", tmp_path / "trigger.safetensors", "--out", tmp_path / "m", *SMALL) == 2
    assert "another model learns another one; name the attack" in capsys.readouterr().err
    save_attack(parse_attack("bad-nets:target=1"), tmp_path / "b.safetensors", (1, 8, 8))
    refused_later = ("--rate", "0.0001")
    planted = ("attack", tmp_path / "b.safetensors", "--out", tmp_path / "m", *SMALL)
    assert run(*planted, *refused_later) == 2
    assert "less than one image" in capsys.readouterr().err


def test_places_that_cannot_take_a_model_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("attack", "none", "--out", ".", *SMALL) == 2
    assert ". cannot be made; give the name of a new folder" in capsys.readouterr().err
    assert run("attack", "none", "--out", tmp_path / "no" / "model", *SMALL) == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert run("attack", "none", "--out", tmp_path / "full", *SMALL) == 2
    assert "is no model; give the name of a new folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["file"]


def test_attacks_are_listed_with_paper_and_parameters(capsys):
    assert run("attacks") == 0
    shown = capsys.readouterr().out
    for words in ("bad-nets: ", "arXiv 1708.06733", "wanet: ", "target=0", "attacker controls"):
        assert words in shown
    assert run("attacks", "--json", "-") == 0
    rows = json.loads(capsys.readouterr().out)["attacks"]
    assert len(rows) >= 20 and all(row["title"] and row["parameters"] for row in rows)
    assert run("attacks", "bad-nets") == 0
    assert "wanet" not in capsys.readouterr().out
    assert run("attacks", "wanets") == 2
    assert "perhaps you meant 'wanet'" in capsys.readouterr().err


def test_a_pool_is_made_and_listed(tmp_path, capsys):
    (tmp_path / "pool.toml").write_text(
        '[[grid]]\ndata = "digits"\nnetworks = ["bezoar:small-cnn"]\n'
        "arguments = { width = 4 }\nrecipe = { epochs = 1 }\n"
    )
    out = tmp_path / "pool"
    assert run("attack", "pool", tmp_path / "pool.toml", "--out", out, "--executor", "local:1") == 0
    assert "digits-small-cnn-clean-" in capsys.readouterr().out
    assert run("attack", "pool", tmp_path / "pool.toml", "--out", out, "--json", "-") == 0
    assert len(json.loads(capsys.readouterr().out)["models"]) == 1
    assert run("attack", "pool", tmp_path / "pool.toml", "--out", out, "--executor", "lokal") == 2
    assert "there is no executor 'lokal'" in capsys.readouterr().err
