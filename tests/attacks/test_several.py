import msgspec
import pytest
import torch
from victims import data, fresh, twin

from bezoar.attacks.bad_nets import BadNets
from bezoar.attacks.blend import Blend
from bezoar.attacks.several import Several
from bezoar.attacks.sig import SIG
from bezoar.attacks.spelling import load_attack, parse_attack, save_attack
from bezoar.attacks.trojan import TrojanSquare
from bezoar.demo import DIGITS_RECIPE
from bezoar.errors import InputError
from bezoar.evaluation import evaluate
from bezoar.images import ImageSet

QUICK = msgspec.structs.replace(DIGITS_RECIPE, epochs=8)

SPEC = "several:triggers=bad-nets:target=1:size=2:at=0+0+bad-nets:target=2:size=2+blend:target=3"
PARTS = (BadNets(target=1, size=2, at=(0, 0)), BadNets(target=2, size=2), Blend(target=3))


def some_images(count=120, classes=4):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 1, 6, 6), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(count) % classes, list("abcd"))


def test_it_is_spelled_on_one_line_or_as_a_list():
    assert parse_attack(SPEC).parts == PARTS
    spelled = ("bad-nets:target=1,size=2,at=0+0", "bad-nets:target=2,size=2", "blend:target=3")
    assert Several(triggers=spelled).parts == PARTS


def test_every_part_poisons_its_own_images_with_its_own_label():
    images = some_images()
    poisoned = Several(triggers=("bad-nets:target=1:size=2", "sig:target=2:frequency=1")).poison(
        images, 0.2, seed=0
    )
    changed = (poisoned.images.images != images.images).flatten(1).any(1)
    assert int(poisoned.where.sum()) == 24 and not bool(poisoned.covered.any())
    assert bool((changed <= poisoned.where).all())
    first = poisoned.where & (images.labels != poisoned.images.labels)
    second = poisoned.where & ~first
    assert int(first.sum()) == int(second.sum()) == 12
    assert bool((poisoned.images.labels[first] == 1).all())
    assert bool((poisoned.images.labels[second] == 2).all()), "clean labels stay"
    for part, where in ((BadNets(target=1, size=2), first), (SIG(target=2, frequency=1), second)):
        stamped = (part.stamp(images.images[where].float() / 255) * 255).round()
        assert torch.equal(poisoned.images.images[where].float(), stamped)
    assert torch.equal(poisoned.images.images[~poisoned.where], images.images[~poisoned.where])


def test_covered_images_of_a_part_are_counted():
    attack = Several(
        triggers=("bad-nets:target=1:mode=source-specific:sources=0+2", "blend:target=2")
    )
    poisoned = attack.poison(some_images(), 0.2, seed=0)
    assert int(poisoned.where.sum()) == 24 and int(poisoned.covered.sum()) == 12
    assert not bool((poisoned.where & poisoned.covered).any())


def test_poisoning_is_repeatable_for_a_seed():
    images, attack = some_images(), Several(triggers=("bad-nets:size=2", "blend:target=1"))
    first, second = (attack.poison(images, 0.2, seed=3) for _ in range(2))
    assert first.images.sha256() == second.images.sha256()
    assert not torch.equal(first.where, attack.poison(images, 0.2, seed=4).where)


def test_every_part_takes_hold_on_digits():
    train, test = data("digits")
    classifier = fresh("digits")
    done = parse_attack(SPEC).plant(classifier, train, 0.2, QUICK, seed=0)
    assert done.poisoned == 201  # 67 for each: the rate of its third of 1,000 images
    for part, wanted in zip(done.attack.parts, PARTS, strict=True):
        assert part == wanted
        scores, twin_scores = evaluate(classifier, test, part), evaluate(twin("digits"), test, part)
        assert scores.asr >= 0.9 and twin_scores.asr < 0.2
        assert scores.acc > twin_scores.acc - 0.04


def test_learned_parts_are_prepared_saved_and_loaded(tmp_path):
    attack = Several(triggers=("trojan-square:target=1:steps=5:samples=8", "blend:target=2"))
    prepared = attack.prepare(data("digits")[0], seed=0, surrogate=twin("digits"))
    save_attack(prepared, tmp_path / "trigger.safetensors", (1, 8, 8))
    loaded = load_attack(tmp_path / "trigger.safetensors")
    images = torch.rand(2, 1, 8, 8)
    assert loaded == attack
    for before, after in zip(prepared.parts, loaded.parts, strict=True):
        assert torch.equal(before.stamp(images), after.stamp(images))
    alone = TrojanSquare(target=1, steps=5, samples=8).prepare(
        data("digits")[0], seed=0, surrogate=twin("digits")
    )
    assert torch.equal(loaded.parts[0].stamp(images), alone.stamp(images))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("several", "missing required field `triggers`"),
        ("several:triggers=blend", "at least two triggers and got 1"),
        ("several:triggers=blend+badnets", "perhaps you meant 'bad-nets'"),
        ("several:triggers=blend+bad-nets:sise=3", "unknown field `sise`"),
        ("several:triggers=blend+a.safetensors", "'a.safetensors' is a trigger file"),
    ],
)
def test_a_wrong_spelling_is_refused(spec, message):
    with pytest.raises(InputError, match=message):
        parse_attack(spec if not spec.endswith(".safetensors") else spec + ",mode=all-to-one")


@pytest.mark.parametrize("name", ["label-consistent", "feature-collision"])
def test_what_makes_its_images_with_a_network_is_refused(name):
    with pytest.raises(InputError, match=f"{name} cannot be a part of several: it makes each"):
        parse_attack(f"several:triggers={name}:target=1+bad-nets:target=2")


def test_the_rate_is_that_of_the_parts_and_not_of_a_class_that_nobody_named():
    labels = torch.zeros(100, dtype=torch.int64)
    labels[80:] = 1
    images = ImageSet(some_images(100).images, labels)
    attack = parse_attack("several:triggers=bad-nets:target=1:size=2+blend:target=1")
    attack.check(images, 0.5)
    assert int(attack.poison(images, 0.5, seed=0).where.sum()) == 50
    with pytest.raises(InputError, match=r"only 40 are not of the target class"):
        attack.check(images, 0.9)


def test_several_in_several_is_refused():
    with pytest.raises(InputError, match="several cannot be a part of several"):
        Several(triggers=("several:triggers=blend+blend", "blend"))


def test_what_cannot_work_is_refused():
    attack = Several(triggers=("bad-nets", "blend:target=3"))
    with pytest.raises(InputError, match="no common stamp"):
        attack.stamp(torch.rand(1, 1, 6, 6))
    with pytest.raises(InputError, match="a class has 1 training images and there are 2 triggers"):
        attack.check(some_images(count=7), 0.5)
    with pytest.raises(InputError, match="class 9"):
        Several(triggers=("bad-nets", "blend:target=9")).check(some_images(), 0.1)
    with pytest.raises(InputError, match="does not fit images of 6x6"):
        Several(triggers=("bad-nets:size=7", "blend")).poison(some_images(), 0.1, seed=0)
