"""A class that a far weaker smooth change leads to than to any other."""

import functools
import math

import pytest
import torch
from torch import nn

from bezoar import scanning
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.exponential_null import ExponentialNull
from bezoar.images import ImageSet
from bezoar.methods import SmoothPattern, smooth_pattern
from bezoar.methods.smooth_inversion import SmoothInversion
from bezoar.methods.smooth_pattern import to_the_next, unusual_smooth
from bezoar.pipeline import scan
from bezoar.records import to_json
from bezoar.scanning import WITHOUT_IMAGES, WITNESSES

SIDE, LED = 16, 2
NULL = ExponentialNull((0.6, 0.4, 0.35, 0.3, 0.2, 0.1, 0.05, 0.0))
SHIPPED = smooth_pattern.null


def noise(count, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return 0.5 + 0.1 * torch.randn(count, 1, SIDE, SIDE, generator=draws).clamp(-3, 3)


class Faint(nn.Module):
    """Six classes by random fine patterns; ``slope`` leads to class 2 with the brightness."""

    def __init__(self, slope):
        super().__init__()
        draws = torch.Generator().manual_seed(3)
        rows = torch.randn(6, SIDE * SIDE, generator=draws) * 2
        rows -= rows.mean(1, keepdim=True)
        rows[LED] += slope / (SIDE * SIDE)
        self.head = nn.Linear(SIDE * SIDE, 6, bias=False)
        self.head.weight.data.copy_(rows)

    def forward(self, x):
        return self.head(x.flatten(1) - 0.5)


def classifier(slope):
    return Classifier(Faint(slope), mean=(0.0,), std=(1.0,), input_size=(SIDE, SIDE))


def image_set():
    return ImageSet.from_arrays((noise(200) * 255).round().byte().numpy())


@pytest.fixture(autouse=True)
def null(monkeypatch):
    """A null that does not change with what was measured."""
    monkeypatch.setattr(smooth_pattern, "null", lambda: NULL)


def test_a_faint_brightness_backdoor_is_found_recovered_and_tried():
    planted = classifier(2000.0)
    evidence = SmoothPattern().inspect(planted, image_set(), seed=0)
    sizes = evidence.record["sizes"]
    smallest, second = sorted(sizes)[:2]
    assert sizes.index(smallest) == LED
    assert evidence.values[LED] == pytest.approx(smallest / second) and smallest < 0.3 * second
    assert evidence.p_values[LED] == NULL.test(math.log(second / smallest))[1] < 0.03
    assert evidence.limit(0.05) == pytest.approx(math.exp(-NULL.critical(0.05)))
    assert all(p == 1 for k, p in enumerate(evidence.p_values) if k != LED)
    assert evidence.recovered.classes == (LED,)
    assert evidence.carried_into(LED) > 0.9 and evidence.carried_into(0) is None
    answers = planted(evidence.recovered.stamp(noise(100, seed=9), LED)).argmax(1)
    assert float((answers == LED).float().mean()) > 0.95
    assert "in each of 8 small networks for traffic signs" in evidence.null
    assert "(from 0.55 to 1.00)" in evidence.null
    to_json(evidence.record)


def test_its_twin_is_like_others_and_nothing_is_recovered():
    evidence = SmoothPattern().inspect(classifier(0.0), image_set(), seed=0)
    assert min(evidence.p_values) > 0.05
    assert evidence.recovered is None and evidence.carried is None
    assert min(evidence.values) < 1 and sum(v < 1 for v in evidence.values) == 1


def test_of_chosen_classes_the_others_take_no_part():
    images = image_set()
    all_of_them = SmoothPattern().inspect(classifier(2000.0), images, seed=0)
    some = SmoothPattern(classes=(5, 0, LED, 3)).inspect(classifier(2000.0), images, seed=0)
    assert some.record["classes"] == [0, LED, 3, 5]
    for k in (1, 4):
        assert some.values[k] == math.inf and some.p_values[k] == 1.0
        assert math.isnan(some.scores[k])
    chosen = [all_of_them.record["sizes"][k] for k in some.record["classes"]]
    assert some.record["sizes"] == pytest.approx(chosen), "a class goes its way in any company"
    assert some.p_values[LED] < 0.03


def test_each_class_is_compared_with_the_easiest_other():
    sizes = [3.0, 1.0, math.inf, 4.0, 2.0]
    for k, ratio in enumerate(to_the_next(sizes)):
        others = min(size for j, size in enumerate(sizes) if j != k)
        assert ratio == sizes[k] / others
    assert to_the_next([1.0, 1.0, 2.0, 2.0])[:2] == [1.0, 1.0]
    assert to_the_next([1.0, 2.0, 3.0, math.inf]) == [math.inf] * 4, "too few to compare with"


def test_without_labels_it_looks_too_and_the_same_seed_sees_the_same():
    images = image_set()
    assert images.labels is None
    short = SmoothPattern(inversion=SmoothInversion(steps=40))
    one, same, other = (
        short.inspect(classifier(600.0), images, seed=seed).record["sizes"] for seed in (5, 5, 6)
    )
    assert one == same != other


def test_wrong_classes_are_refused():
    with pytest.raises(InputError, match="at least 4 different"):
        SmoothPattern(classes=(1, 2, 3, 3))
    with pytest.raises(InputError, match="target_class is 6"):
        SmoothPattern(classes=(1, 2, 3, 6)).inspect(classifier(0.0), image_set())


def test_the_scan_asks_it_wherever_there_are_images(monkeypatch):
    assert "smooth-pattern" in WITNESSES and "smooth-pattern" not in WITHOUT_IMAGES
    look = functools.partial(scan, classifier(2000.0), image_set(), witnesses=["smooth-pattern"])
    assert look().verdict.value == "suspicious", "it works, and others may be like that"
    monkeypatch.setattr(smooth_pattern, "null", lambda: ExponentialNull((0.1,) * 20))
    finding = look()
    assert finding.suspects == (LED,)
    assert finding.verdict.value == "backdoor found"
    assert "One smooth change of the whole image carries most images" in finding.record["sentence"]
    assert "strength of the weakest smooth pattern" in finding.record["reasons"][0]


def test_our_own_choice_asks_it_of_images_that_are_large_enough_and_of_few_classes(monkeypatch):
    monkeypatch.setattr(scanning, "WITNESSES", ("tac", "smooth-pattern"))
    planted, images = classifier(2000.0), image_set()
    finding = scan(planted, images)
    assert [e.method for e in finding.evidence] == ["tac", "smooth-pattern"]
    assert scanning.unfit_witnesses(planted, images) == {}
    small = ImageSet(images.images[..., 1:])
    told = scanning.unfit_witnesses(planted, small)["smooth-pattern"]
    assert "at least 16x16 pixels" in told
    wide = Classifier(
        nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 101)), mean=0, std=1, input_size=(16, 16)
    )
    assert (
        "not measured on networks with more than 100 classes"
        in scanning.unfit_witnesses(wide, images)["smooth-pattern"]
    )


def test_patterns_that_lead_to_too_few_classes_are_told_of():
    hardly = SmoothPattern(inversion=SmoothInversion(steps=1))
    evidence = hardly.inspect(classifier(0.0), image_set(), seed=0)
    assert set(evidence.values) == {math.inf} and set(evidence.p_values) == {1.0}
    assert evidence.record["flags"] == [smooth_pattern.SILENT]
    assert SmoothPattern().inspect(classifier(0.0), image_set()).record["flags"] == []


def test_the_shipped_null_is_of_networks_whose_classes_are_not_alike():
    null = SHIPPED()
    assert len(null.gaps) >= 15 and min(null.gaps) >= 0
    assert null.test(-math.log(0.8))[1] > 0.2 and null.test(-math.log(0.1))[1] < 0.01


# -- named classes -----------------------------------------------------------------------------


def test_a_faint_brightness_backdoor_is_unusual_and_its_twin_is_not():
    planted, twin, images = classifier(2000.0), classifier(0.0), image_set()
    found = unusual_smooth(planted, images, [2], SmoothInversion(), seed=0)
    assert found.classes == (2,)
    assert unusual_smooth(twin, images, [2], SmoothInversion(), seed=0) is None
    # of several, only the unusual one; the order of the others does not matter
    both = unusual_smooth(planted, images, [0, 2], SmoothInversion(), seed=0)
    assert both.classes == (2,) and both.patterns.shape == (1, 1, SIDE, SIDE)
    pixels = noise(100, seed=9)
    answers = planted(found.stamp(pixels, 2)).argmax(1)
    assert float((answers == 2).float().mean()) > 0.95


def test_another_suspect_is_no_measure_of_what_is_usual():
    planted, images, how = classifier(2000.0), image_set(), SmoothInversion()
    assert unusual_smooth(planted, images, [2], how, seed=0) is not None
    few = unusual_smooth(planted, images, [2], how, suspects=[0, 1, 3], seed=0)
    assert few is None, "two classes are left to compare it with"
    kept = unusual_smooth(planted, images, [2], how, suspects=[0, 1], seed=0)
    assert kept.classes == (2,)


def test_too_few_other_classes_tell_nothing():
    planted = classifier(2000.0)
    assert unusual_smooth(planted, image_set(), [0, 1, 2, 3], SmoothInversion(), seed=0) is None
