"""Several recovered triggers are unlearned together."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from method_rows import ROWS, sharing
from msgspec.structs import replace

from bezoar.errors import InputError
from bezoar.evaluation import compare, evaluate
from bezoar.images import ImageSet
from bezoar.methods import BtiDbf, JointUnlearning, joint_unlearning
from bezoar.methods.additive_patterns import AdditivePatterns
from bezoar.methods.joint_unlearning import joint_loss, stamp_some
from bezoar.methods.recovered import Trigger
from bezoar.training import Recipe

QUICK = ROWS["joint-unlearning"].quick()


class Adds:
    """Adds a constant to every pixel of one channel-free image."""

    def __init__(self, amount, classes=(1,)):
        self.amount, self.classes = amount, classes

    def stamp(self, images, k):
        return (images + self.amount).clamp(0, 1)


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_share_of_the_images_carries_a_part_of_one_trigger():
    images = torch.full((4000, 1, 4, 4), 0.2)
    triggers = [Trigger("a", 1, Adds(0.4)), Trigger("b", 1, Adds(-0.1))]
    how = JointUnlearning(share=0.3, shift=0.0)
    shown, carries = stamp_some(images, triggers, how, draws())
    assert float(carries.float().mean()) == pytest.approx(0.3, abs=0.03)
    assert torch.equal(shown[~carries], images[~carries])
    change = (shown - images)[carries][:, 0, 0, 0]
    up, down = change[change > 0], change[change < 0]
    assert len(up) + len(down) == int(carries.sum())
    assert len(up) / len(change) == pytest.approx(0.5, abs=0.06)
    for part in (up / 0.4, down / -0.1):  # uniform in [1/4, 1]
        assert float(part.min()) >= 0.25 - 1e-4 and float(part.max()) <= 1 + 1e-4
        assert float(part.mean()) == pytest.approx(0.625, abs=0.03)


def test_a_shift_moves_some_triggers_and_no_image():
    images = torch.rand(500, 1, 16, 16, generator=draws(1)) * 0.5

    class Corner(Adds):
        def stamp(self, images, k):
            out = images.clone()
            out[:, :, 0, 0] += 0.5
            return out

    how = JointUnlearning(share=1.0, shift=1 / 16)
    shown, _ = stamp_some(images, [Trigger("a", 1, Corner(0))], how, draws())
    change = (shown - images).abs() > 1e-6
    reached = change.any(0)[0].nonzero()
    assert reached.max() == 1, "by one pixel, as 1/16 of 16"
    assert float(change[:, 0, 0, 0].float().mean()) > 0.5, "half of them stay"
    assert int(change.flatten(1).sum(1).max()) == 1
    # A shift out of the image leaves nothing to put on.
    assert bool((change.flatten(1).sum(1) == 0).any())


@pytest.mark.parametrize("wanted", ["labels", "answers"])
def test_the_loss_is_what_the_formula_says(digits, wanted):
    how = JointUnlearning(wanted=wanted, temperature=3.0)
    triggers = [Trigger("a", 1, Adds(0.4))]
    pixels = digits.clean.images[:12].float() / 255
    labels = digits.clean.labels[:12]
    loss = joint_loss(digits.twin, triggers, how)
    found = float(loss(digits.planted, pixels, labels, draws()).detach())
    shown, carries = stamp_some(pixels, triggers, how, draws())
    assert 0 < int(carries.sum()) < 12
    total = 0.0
    with digits.planted.evaluating(), digits.twin.evaluating(), torch.no_grad():
        for x, plain, y, stamp in zip(shown, pixels, labels, carries, strict=True):
            answer = digits.planted(x[None])[0]
            if stamp and wanted == "labels":
                total -= float(F.log_softmax(answer, 0)[y])
                continue
            p = (digits.twin(plain[None])[0] / 3).softmax(0)
            total += 9 * float((p * (p.log() - F.log_softmax(answer / 3, 0))).sum())
    assert found == pytest.approx(total / 12, rel=1e-4)


@sharing("joint-unlearning", "planted")
def test_a_planted_backdoor_is_removed(digits, full_repair):
    repair = full_repair("joint-unlearning", "planted")
    before = evaluate(digits.planted, digits.test, digits.attack)
    after = evaluate(repair.classifier, digits.test, digits.attack)
    assert before.asr > 0.95 and after.asr < 0.1 and before.acc - after.acc < 0.03
    assert compare(digits.attack, before, after)["der"] > 0.93
    assert repair.record["target_classes"] == [digits.attack.target]
    witnesses = [t["witness"] for t in repair.record["triggers"]]
    assert witnesses[-1] == "neural-cleanse" and len(witnesses) >= 2


@sharing("joint-unlearning", "twin")
def test_the_clean_twin_stays(digits, full_repair):
    twin = full_repair("joint-unlearning", "twin")
    plain = evaluate(digits.twin, digits.test, digits.attack)
    assert plain.acc - evaluate(twin.classifier, digits.test, digits.attack).acc < 0.03


def test_doing_nothing_would_fail(digits):
    idle = Recipe(epochs=1, learning_rate=1e-7)
    repair = replace(QUICK, recipe=idle).remove(digits.planted, digits.clean, seed=0)
    assert evaluate(repair.classifier, digits.test, digits.attack).asr > 0.9


def test_a_named_class_is_the_one_whose_triggers_are_unlearned(digits, monkeypatch):
    def refuses(self, *_, **__):
        raise InputError("no layer cuts it in two")

    monkeypatch.setattr(BtiDbf, "inspect", refuses)
    record = replace(QUICK, target_class=2).remove(digits.planted, digits.clean, seed=0).record
    assert record["target_classes"] == [2]
    assert record["triggers"][-1] == {"witness": "neural-cleanse", "class": 2}
    assert all(np.isfinite(curve["y"]).all() for curve in record["curves"])


def test_an_unusual_smooth_pattern_is_recovered_too(digits, monkeypatch):
    pattern = AdditivePatterns((4,), torch.zeros(1, 1, 8, 8), torch.tensor([0.1]), 2.0)
    monkeypatch.setattr(joint_unlearning, "unusual_smooth", lambda *_, **__: pattern)
    triggers = replace(QUICK, target_class=4).recover(digits.planted, digits.clean, seed=0)
    assert [t.recovered for t in triggers if t.witness == "smooth-pattern"] == [pattern]
    assert triggers[-1].witness == "neural-cleanse"


def test_bad_settings_and_images_are_refused(digits):
    for wrong in ({"share": 1.5}, {"shift": 0.6}, {"temperature": 0.0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            replace(JointUnlearning(), **wrong)
    with pytest.raises(InputError, match="label"):
        JointUnlearning().remove(digits.planted, ImageSet(digits.clean.images))
    with pytest.raises(InputError, match="target_class is 10"):
        JointUnlearning(target_class=10).remove(digits.planted, digits.clean)
    with pytest.raises(InputError, match="no recovered trigger"):
        JointUnlearning().unlearn(digits.planted, digits.planted, digits.clean, [])
