"""Whether a recovered trigger works, from how many classes, and how natural that is."""

from dataclasses import replace

import pytest
import torch
from few_images import first_of_each
from true_patch import Patch

from bezoar.classifier import Classifier
from bezoar.images import ImageSet
from bezoar.methods import TAC, Evidence
from bezoar.proving import Prover, natural_share
from bezoar.verdict import Verdict, judge


@pytest.fixture(scope="module")
def seen(digits):
    return TAC().inspect(digits.planted, digits.clean, seed=0)


class Nothing(Patch):
    def stamp(self, images, k):
        return images


def pointing(found, classes=10):
    blank = (1.0,) * classes
    return Evidence("hand", "Nothing", blank, blank, blank, "none", recovered=found)


def test_a_working_trigger_carries_images_of_every_other_class(digits):
    proof = Prover(digits.planted, digits.clean, seed=0).prove(pointing(Patch(digits.attack)), 4)
    assert proof.works and len(proof.sources) == 9 and 4 not in proof.sources
    assert proof.carried >= 0.95 and 0 <= proof.natural <= 1


def test_the_same_trigger_proves_nothing_on_the_clean_twin(digits):
    proof = Prover(digits.twin, digits.clean, seed=0).prove(pointing(Patch(digits.attack)), 4)
    assert not proof.works and proof.carried < 0.2


def test_no_change_is_no_proof_and_nothing_recovered_is_none(digits):
    prover = Prover(digits.planted, digits.clean, seed=0)
    proof = prover.prove(pointing(Nothing(digits.attack)), 4)
    assert not proof.works and proof.sources == () and proof.natural is None
    assert prover.prove(pointing(Patch(digits.attack)), 3) is None
    assert prover.prove(pointing(None), 4) is None


def test_a_trigger_of_one_source_class_alone_is_no_proof(digits):
    answers = {}

    class OneSource(Patch):
        def stamp(self, images, k):
            stamped = self.attack.stamp(images)
            with torch.no_grad():
                from_seven = digits.planted(images).argmax(1) == 7
            answers["seven"] = int(from_seven.sum())
            return torch.where(from_seven[:, None, None, None], stamped, images)

    found = pointing(OneSource(digits.attack))
    proof = Prover(digits.planted, digits.clean, seed=0).prove(found, 4)
    assert answers["seven"] and proof.sources == (7,) and not proof.works


def test_a_shift_of_the_features_is_tried_as_the_plain_head_says(digits, seen):
    proof = Prover(digits.planted, digits.clean, seed=0).prove(seen, 4)
    logits, features = digits.planted.survey(digits.clean.split(0.8, seed=0)[1])
    weight, bias = digits.planted.head
    moved = (features + seen.perturbations[4]) @ weight.T + bias
    others = logits.argmax(1) != 4
    assert proof.counted == int(others.sum())
    gap = moved[others, 4] - moved[others].amax(1)  # the hardest image lies on the border
    assert proof.carried == pytest.approx(float((gap >= -1e-3).float().mean()), abs=0.005)
    assert proof.carried >= float((gap >= 0).float().mean())
    unreachable = replace(seen, perturbations=torch.full_like(seen.perturbations, torch.inf))
    assert Prover(digits.planted, digits.clean, seed=0).prove(unreachable, 4) is None


def test_the_share_of_natural_features_against_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    u, s, n = (torch.randn(12, generator=generator) for _ in range(3))
    work = [max(0.0, float(a * b)) for a, b in zip(u, s, strict=True)]
    usual = [max(0.0, float(a * b)) for a, b in zip(u, n, strict=True)]
    plain = sum(min(a / sum(work), b / sum(usual)) for a, b in zip(work, usual, strict=True))
    assert natural_share(u, s, n) == pytest.approx(plain, rel=1e-5)


def test_the_natural_change_itself_is_natural_and_another_feature_is_not():
    u = torch.tensor([1.0, 2.0, 1.0])
    natural = torch.tensor([1.0, 1.0, 0.0])
    assert natural_share(u, 3 * natural, natural) == pytest.approx(1.0)
    assert natural_share(u, torch.tensor([0.0, 0.0, 1.0]), natural) == 0.0
    assert natural_share(u, -natural, natural) == 0.0


def test_the_model_stays_as_it_is(digits):
    classifier = Classifier(
        digits.planted.network.train(), mean=digits.planted.mean, std=digits.planted.std
    ).trace(digits.clean.shape)
    try:
        Prover(classifier, digits.clean, seed=0).prove(pointing(Patch(digits.attack)), 4)
        assert classifier.network.training
    finally:
        digits.planted.network.eval()


def test_sources_with_one_image_each_may_be_chance_unless_most_images_are_carried(digits):
    """The true patch on a third of the images: some whole classes of one image are carried."""

    class Sometimes(Patch):
        every = 3

        def stamp(self, images, k):
            chosen = torch.arange(len(images)) % self.every == 0
            return torch.where(chosen[:, None, None, None], super().stamp(images, k), images)

    found = Sometimes(digits.attack)
    prover = Prover(digits.planted, first_of_each(digits.clean, 5), seed=0)  # one of five held out
    some = prover.prove(pointing(found), 4)
    assert len(some.sources) >= 2 and some.firm == 0 and some.carried < 0.8 and not some.works
    found.every = 1
    whole = prover.prove(pointing(found), 4)
    assert whole.firm == 0 and whole.carried >= 0.8 and whole.works


def test_what_was_computed_from_all_images_is_never_proven(digits):
    patch = pointing(Patch(digits.attack))
    one_each = Prover(digits.planted, first_of_each(digits.clean, 1), seed=0)
    everything = replace(patch, record={"configuration": {"held_out": 0.0}})
    for proof in (
        one_each.prove(patch, 4),
        Prover(digits.planted, digits.clean, seed=0).prove(everything, 4),
    ):
        assert proof.counted == 0 and not proof.works


def test_a_shift_is_never_proven_on_the_images_that_it_was_made_from(digits, seen):
    one_each = Prover(digits.planted, first_of_each(digits.clean, 1), seed=0)
    assert one_each.prove(seen, 4).counted == 0 and not one_each.prove(seen, 4).works
    wrong = replace(seen, perturbations=-seen.perturbations)
    assert not Prover(digits.planted, digits.clean, seed=0).prove(wrong, 4).works


def test_the_share_that_makes_a_source_is_the_verdict_s(digits):
    patch = pointing(Patch(digits.attack))
    low, beyond = (
        Prover(digits.planted, digits.clean, seed=0, needed=needed).prove(patch, 4)
        for needed in (0.5, 1.01)
    )
    assert len(low.sources) == 9 and beyond.sources == () and not beyond.works


def test_a_class_that_is_never_answered_is_what_its_images_show(digits):
    disowned = digits.twin.copy()
    with torch.no_grad():
        disowned.network.fc.bias[5] -= 1e3
    disowned.trace(digits.clean.shape)
    features = disowned.survey(digits.clean)[1]
    expected = features[digits.clean.labels == 5].mean(0)
    assert torch.allclose(Prover(disowned, digits.clean, seed=0)._centre(5), expected)


def test_what_no_image_is_like_is_not_asked_and_proves_nothing(digits):
    """Without labels and without an image that is answered with the target class."""
    answers = digits.planted.logits(digits.clean).argmax(1)
    others = ImageSet(digits.clean.images[answers != 4])
    patch = pointing(Patch(digits.attack))
    proof = Prover(digits.planted, others, seed=0).prove(patch, 4)
    assert proof.works and proof.natural is None
    seen = Prover(digits.planted, ImageSet(digits.clean.images), seed=0).prove(patch, 4)
    assert seen.works and seen.natural is not None
    sure = replace(patch, p_values=tuple(1e-4 if k == 4 else 1.0 for k in range(10)))
    names = digits.planted.classes
    verdicts = [judge([sure], names, prove=lambda _e, _k, p=p: p) for p in (proof, seen)]
    assert verdicts[0].verdict is Verdict.SUSPICIOUS
    assert "cannot be told from a natural likeness" in " ".join(verdicts[0].reasons)
    assert verdicts[1].verdict is Verdict.BACKDOOR_FOUND
