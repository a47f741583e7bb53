"""Checks with a known trigger: a planted one is found, and none where there is none."""

import copy
import itertools
import json

import pytest
import torch

from bezoar.attacks import BadNets, Blend, Several, WaNet
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.sample_checks import check_samples, correlation, inpaint

TARGET = 4


def replaced(digits, share, stamp=None):
    """Test images; so many of the target class are images of others, stamped."""
    images, labels = digits.test.images[:200].clone(), digits.test.labels[:200]
    own = torch.nonzero(labels == TARGET).flatten()
    own = own[: round(share * len(own))]
    others = torch.nonzero(labels != TARGET).flatten()[: len(own)]
    stamped = (stamp or digits.attack.stamp)(images[others].float() / 255)
    images[own] = (stamped * 255).round().byte()
    return ImageSet(images, labels)


def test_real_images_carry_no_trigger(digits):
    found = check_samples(
        digits.test, digits.attack, evaluator=digits.twin, suspect=digits.planted, seed=0
    )
    (trigger,) = found["triggers"]
    assert trigger["correlation"]["p_value"] > 0.05 and trigger["correlation"]["rank"] > 1
    assert abs(trigger["correlation"]["share"]) < 0.3
    assert abs(trigger["inpainting"]["target"]["change"]) < 0.1
    assert trigger["accuracy"]["target"]["value"] > 0.95
    assert found["accuracy"]["overall"]["count"] == found["count"] == len(digits.test)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_trigger_in_the_target_class_is_found(digits, share):
    samples = replaced(digits, share)
    found = check_samples(
        samples, digits.attack, evaluator=digits.twin, suspect=digits.planted, seed=0
    )
    (trigger,) = found["triggers"]
    measured = trigger["correlation"]
    assert measured["p_value"] < 0.001 and measured["rank"] == 1 and measured["classes"] == 10
    assert measured["share"] == pytest.approx(share, abs=0.15) and measured["correlation"] > 0.3
    filled = trigger["inpainting"]
    assert filled["region"] == pytest.approx(4 / 64, abs=0.02)
    assert filled["target"]["change"] < -0.4 * share and filled["target"]["after"] <= 1.1 - share
    assert abs(filled["others"]["change"]) < 0.1 and filled["others"]["after"] > 0.95
    assert trigger["accuracy"]["target"]["value"] <= 1.05 - share
    assert trigger["accuracy"]["others"]["value"] > 0.95
    assert found["accuracy"]["per_class"]["4"] == trigger["accuracy"]["target"]


def test_another_patch_in_the_target_class_is_not_this_trigger(digits):
    other = BadNets(target=TARGET, size=2, position="top-left")
    samples = replaced(digits, 1.0, other.stamp)
    (trigger,) = check_samples(samples, digits.attack, suspect=digits.planted, seed=0)["triggers"]
    assert trigger["correlation"]["p_value"] > 0.05
    (trigger,) = check_samples(samples, other, suspect=digits.planted, seed=0)["triggers"]
    assert trigger["correlation"]["p_value"] < 0.001


def test_the_p_value_is_that_of_all_relabellings():
    generator = torch.Generator().manual_seed(1)
    pixels, added = torch.rand(9, 1, 4, 4, generator=generator), torch.zeros(3, 1, 4, 4)
    added[:, :, 2:, 2:] = torch.rand(3, 1, 2, 2, generator=generator)
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2])
    found = correlation(pixels, labels, 0, added, seed=0)
    t = added.mean(0).flatten().double()
    t = t - t.mean()
    along = pixels.flatten(1).double() @ t

    def gap(chosen):
        rest = [i for i in range(9) if i not in chosen]
        return (along[list(chosen)].mean() - along[rest].mean()).item()

    gaps = [gap(chosen) for chosen in itertools.combinations(range(9), 3)]
    exact = sum(value >= gap((0, 1, 2)) - 1e-12 for value in gaps) / len(gaps)
    assert found["p_value"] == pytest.approx(exact, abs=0.03) and 0.02 < exact < 0.98
    d = (pixels[:3].mean(0) - pixels[3:].mean(0)).flatten().double()
    assert found["correlation"] == pytest.approx(torch.corrcoef(torch.stack([d, t]))[0, 1].item())
    assert found["share"] == pytest.approx((d @ t / (t @ t)).item())
    ranks = [gap((0, 1, 2)), gap((3, 4, 5, 6)), gap((7, 8))]
    assert found["rank"] == 1 + sum(value > ranks[0] for value in ranks)


def test_constancy_is_one_for_one_pattern_and_lower_for_many():
    pixels = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    same = torch.zeros(8, 1, 4, 4)
    same[:, :, 0, 0] = 0.5
    assert correlation(pixels, labels, 0, same, seed=0)["constancy"] == pytest.approx(1)
    many = torch.zeros(8, 1, 4, 4)
    many.flatten(1)[torch.arange(8), torch.arange(8)] = 0.5
    assert correlation(pixels, labels, 0, many, seed=0)["constancy"] == pytest.approx(1 / 8)


def test_a_trigger_without_a_pattern_cannot_be_correlated():
    pixels, labels = torch.rand(6, 1, 4, 4), torch.tensor([0, 0, 0, 1, 1, 1])
    for added in (torch.zeros(2, 1, 4, 4), torch.full((2, 1, 4, 4), 0.1)):
        found = correlation(pixels, labels, 0, added, seed=0)
        assert found["correlation"] is None and "the same to every pixel" in found["reason"]


def test_a_trigger_all_over_the_image_cannot_be_filled(digits):
    for attack in (Blend(target=TARGET, ratio=0.3), WaNet(target=TARGET)):
        found = check_samples(digits.test, attack, suspect=digits.planted, seed=0)
        (trigger,) = found["triggers"]
        assert trigger["inpainting"]["target"] is None
        assert "at most 50%" in trigger["inpainting"]["reason"]
        assert trigger["accuracy"] is None and found["accuracy"] is None
        assert 0 < trigger["correlation"]["p_value"] <= 1


def test_each_of_several_triggers_is_looked_for(digits):
    both = Several(triggers=("bad-nets:target=4:size=2", "bad-nets:target=1:position=top-left"))
    found = check_samples(replaced(digits, 1.0), both, suspect=digits.planted, seed=0)
    assert [t["target"] for t in found["triggers"]] == [4, 1]
    assert [t["correlation"]["p_value"] < 0.01 for t in found["triggers"]] == [True, False]


def test_samples_without_the_target_class_say_why_nothing_is_measured(digits):
    for keep, word in (
        (digits.test.labels != TARGET, "no"),
        (digits.test.labels == TARGET, "every"),
    ):
        part = digits.test.subset(torch.nonzero(keep).flatten())
        (trigger,) = check_samples(
            part, digits.attack, evaluator=digits.twin, suspect=digits.planted, seed=0
        )["triggers"]
        assert trigger["reason"] == f"{word} sample is of the target class 4"
        assert trigger["correlation"] is trigger["inpainting"] is trigger["accuracy"] is None


def test_what_cannot_be_checked_is_refused(digits):
    with pytest.raises(InputError, match="needs labelled images"):
        check_samples(ImageSet(digits.test.images), digits.attack, suspect=digits.planted, seed=0)
    everywhere = BadNets(mode="all-to-all", num_classes=10)
    with pytest.raises(InputError, match="a target for every class"):
        check_samples(digits.test, everywhere, suspect=digits.planted, seed=0)
    eleven = ImageSet(digits.test.images[:2], torch.tensor([4, 10]))
    with pytest.raises(InputError, match="label 10"):
        check_samples(eleven, digits.attack, suspect=digits.planted, seed=0)


def test_the_classifiers_stay_as_they_are_and_a_seed_repeats(digits):
    before = copy.deepcopy(digits.planted.network.state_dict())
    runs = [
        check_samples(replaced(digits, 0.1), digits.attack, suspect=digits.planted, seed=s)
        for s in (0, 0, 1)
    ]
    assert runs[0] == runs[1]
    assert all(torch.equal(v, before[k]) for k, v in digits.planted.network.state_dict().items())


def test_filling_is_that_of_a_slow_version():
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(2, 3, 7, 9, generator=generator)
    region = torch.zeros(7, 9, dtype=torch.bool)
    region[3:, 4:] = True
    region[0, 0] = True
    expected, known = images.clone().double(), ~region
    while not known.all():
        old, before = expected.clone(), known.clone()
        for i, j in torch.nonzero(~before).tolist():
            near = [
                (a, b)
                for a in range(max(0, i - 1), min(7, i + 2))
                for b in range(max(0, j - 1), min(9, j + 2))
                if before[a, b]
            ]
            if near:
                expected[:, :, i, j] = sum(old[:, :, a, b] for a, b in near) / len(near)
                known[i, j] = True
    copied = images.clone()
    found = inpaint(images, region)
    assert torch.allclose(found.double(), expected, atol=1e-6)
    assert torch.equal(images, copied) and torch.equal(found[:, :, ~region], images[:, :, ~region])


def test_a_region_that_is_the_whole_image_is_refused():
    with pytest.raises(InputError, match="the whole image"):
        inpaint(torch.rand(1, 1, 2, 2), torch.ones(2, 2, dtype=torch.bool))
