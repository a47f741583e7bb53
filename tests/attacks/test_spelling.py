import json

import pytest
import safetensors.torch
import torch

from bezoar.attacks.bad_nets import BadNets
from bezoar.attacks.blend import Blend
from bezoar.attacks.smooth import Smooth
from bezoar.attacks.spelling import (
    configuration,
    load_attack,
    make_attack,
    parse_attack,
    save_attack,
)
from bezoar.attacks.stored_pattern import StoredPattern
from bezoar.errors import InputError


@pytest.mark.parametrize(
    ("spec", "attack"),
    [
        ("bad-nets", BadNets()),
        ("bad-nets:target=3,size=4", BadNets(target=3, size=4)),
        (" bad-nets : target = 3 , pattern=square,", BadNets(target=3, pattern="square")),
        (
            "bad-nets:mode=source-specific,sources=1+4",
            BadNets(mode="source-specific", sources=(1, 4)),
        ),
        ("bad-nets:mode=all-to-all,num_classes=4", BadNets(mode="all-to-all", num_classes=4)),
        ("blend:ratio=0.1", Blend(ratio=0.1)),
        ("stored-pattern:file=a/b.npy,index=1", StoredPattern(file="a/b.npy", index=1)),
    ],
)
def test_an_attack_is_read_from_text(spec, attack):
    assert parse_attack(spec) == attack
    assert repr(parse_attack(spec)) == repr(attack)


def test_the_number_of_classes_is_filled_in_where_the_mode_needs_it():
    assert parse_attack("bad-nets:mode=all-to-all", num_classes=7).num_classes == 7
    assert parse_attack("bad-nets:mode=all-to-all,num_classes=3", num_classes=7).num_classes == 3
    assert parse_attack("bad-nets", num_classes=7) == BadNets()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("badnets", "perhaps you meant 'bad-nets'"),
        ("", "there is no attack ''"),
        ("bad-nets:size", "'size' is no key=value pair"),
        ("bad-nets:sise=3", "unknown field `sise` .*parameters: target, .*size"),
        ("bad-nets:size=big", "Expected `int`"),
        ("bad-nets:position=middle", "Invalid enum value 'middle'"),
        ("bad-nets:target=-1", "class indices count from 0"),
        ("bad-nets:size=0", "must be at least 1"),
        ("bad-nets:mode=source-specific,sources=a", "Expected `int`"),
        ("blend:ratio=0", "greater than 0"),
        ("blend:ratio=nan", "greater than 0"),
        ("stored-pattern", "missing required field `file`"),
    ],
)
def test_a_wrong_trigger_says_what_was_expected(spec, message):
    with pytest.raises(InputError, match=message):
        parse_attack(spec)


def test_a_configuration_is_plain_and_complete():
    attack = BadNets(target=3, mode="source-specific", sources=(1, 4), at=(0, -3))
    values = json.loads(json.dumps(configuration(attack)))
    name = values.pop("name")
    assert name == "bad-nets" and make_attack(name, values, "test") == attack


def test_a_trigger_file_is_an_attack_too(tmp_path):
    path = tmp_path / "trigger.safetensors"
    attack = Smooth(target=2).holding({"pattern": torch.rand(3, 6, 6)}, (3, 6, 6))
    save_attack(attack, path, (3, 6, 6))
    images = torch.rand(2, 3, 6, 6)
    loaded = parse_attack(str(path))
    assert loaded == attack and torch.equal(loaded.stamp(images), attack.stamp(images))


def test_a_trigger_stored_in_half_precision_stamps_nearly_the_same(tmp_path):
    path = tmp_path / "trigger.safetensors"
    attack = Smooth().holding({"pattern": torch.rand(3, 6, 6)}, (3, 6, 6))
    save_attack(attack, path, (3, 6, 6))
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
        halves = {name: file.get_tensor(name).half() for name in file.keys()}  # noqa: SIM118
    safetensors.torch.save_file(halves, path, metadata)
    images = torch.rand(2, 3, 6, 6)
    stamped = load_attack(path).stamp(images)
    assert stamped.dtype == torch.float32
    assert float((stamped - attack.stamp(images)).abs().max()) < 1e-3


def test_a_trigger_that_has_to_be_learned_is_not_saved_before(tmp_path):
    with pytest.raises(InputError, match="has to be learned"):
        save_attack(Smooth(), tmp_path / "trigger.safetensors", (3, 6, 6))
    assert not (tmp_path / "trigger.safetensors").exists()


def header(**facts):
    return {"bezoar.attack": json.dumps(facts)}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "is no trigger file of bezoar"),
        ({"format": "pt"}, "is no trigger file of bezoar"),
        ({"bezoar.attack": "{half"}, "is no trigger file of bezoar"),
        ({"bezoar.attack": "[1, 2]"}, "is no trigger file of bezoar"),
        (header(shape=[3, 6, 6]), "is no trigger file of bezoar"),
        (header(attack={"size": 3}, shape=[3, 6, 6]), "is no trigger file of bezoar"),
        (header(attack={"name": "bad-nets"}), "is no trigger file of bezoar"),
        (header(attack={"name": "bad-nets"}, shape=["a"]), "is no trigger file of bezoar"),
        (header(attack={"name": "badnets"}, shape=[3, 6, 6]), "perhaps you meant 'bad-nets'"),
        (
            header(attack={"name": "bad-nets", "sise": 3}, shape=[3, 6, 6]),
            "trigger file .*unknown field `sise`",
        ),
        (
            header(attack={"name": "bad-nets", "size": 0}, shape=[3, 6, 6]),
            "must be at least 1",
        ),
    ],
)
def test_a_foreign_file_is_refused(tmp_path, metadata, message):
    path = tmp_path / "trigger.safetensors"
    safetensors.torch.save_file({"pattern": torch.zeros(3, 6, 6)}, path, metadata)
    with pytest.raises(InputError, match=message):
        load_attack(path)


@pytest.mark.parametrize("content", [b"", b'\x08\0\0\0\0\0\0\0{"broken', b"PK\x03\x04 a zip", None])
def test_a_broken_or_missing_file_is_named(tmp_path, content):
    path = tmp_path / "trigger.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"trigger file .*trigger\.safetensors cannot be read"):
        parse_attack(str(path))


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    path = tmp_path / "trigger.safetensors"
    save_attack(Blend(), path, (3, 6, 6))
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(InputError, match="cannot be read"):
        load_attack(path)


def test_a_trigger_for_other_images_is_refused(tmp_path):
    path = tmp_path / "trigger.safetensors"
    save_attack(Blend(), path, (3, 6, 6))
    with pytest.raises(InputError, match=r"shape \(3, 6, 6\) and these have \(1, 6, 6\)"):
        load_attack(path).stamp(torch.rand(1, 1, 6, 6))
