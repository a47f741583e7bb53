"""Selection: the same as a slow plain version, and what is dropped, relaxed and missed is told."""

import json
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from bezoar.errors import InputError
from bezoar.methods.fred_selection import Selection, distinct, select
from bezoar.methods.sample_diversity import diversity
from bezoar.methods.sample_scoring import score_samples

QUICK = Selection(augmentations=4, perturbations=1)


@pytest.fixture(scope="module")
def samples(digits):
    """150 real images, ten noise images, and each of the first 20 twice."""
    generator = torch.Generator().manual_seed(0)
    real = digits.test.images[:150].float() / 255
    noise = torch.rand(10, 1, 8, 8, generator=generator)
    labels = torch.cat([digits.test.labels[:150], torch.arange(10), digits.test.labels[:20]])
    return torch.cat([real, noise, real[:20]]), labels


def slowly(classifier, images, labels, per_class, settings, seed):
    """Pair by pair, in plain loops."""
    scores = score_samples(classifier, images, labels, settings, seed=seed)
    with torch.no_grad():
        features = classifier.features(images).double()
    classes = sorted(set(labels.tolist()))
    centre = sum(features[labels == k].mean(0) for k in classes) / len(classes)
    kept = []
    for k in range(classifier.num_classes):

        def rank(i):
            firm = (
                scores.score[i] >= settings.least_score
                and scores.confidence[i] >= settings.least_confidence
            )
            return (not firm, -scores.score[i].item())

        members = [i for i in range(len(images)) if labels[i] == k and scores.answers[i] == k]
        chosen = []
        for i in sorted(members, key=rank):
            cosines = [
                torch.cosine_similarity(features[i] - centre, features[j] - centre, dim=0).item()
                for j in chosen
            ]
            if all(c <= settings.similarity for c in cosines):
                chosen.append(i)
        kept += chosen[:per_class]
    return kept


@pytest.mark.parametrize("per_class", [3, 12])
def test_selection_is_that_of_a_slow_plain_version(digits, samples, per_class):
    images, labels = samples
    settings = replace(QUICK, similarity=0.95)
    found = select(digits.twin, images, labels, per_class, settings, seed=3)
    assert found.indices.tolist() == slowly(digits.twin, images, labels, per_class, settings, 3)
    assert found.scores.shape == (len(images),)
    counts = labels[found.indices].bincount(minlength=10)
    assert counts.max() <= per_class and found.record["kept"] == len(found.indices)
    told = [count["kept"] for count in found.record["per_class"].values()]
    assert counts.tolist() == told
    json.dumps(found.record, allow_nan=False)


def test_of_duplicates_one_is_kept(digits, samples):
    images, labels = samples
    found = select(digits.twin, images, labels, 100, QUICK, seed=0).indices
    twins = [(i, 160 + i) for i in range(20)]
    assert not any(a in found and b in found for a, b in twins)
    assert any(a in found or b in found for a, b in twins)
    everything = select(digits.twin, images, labels, 100, replace(QUICK, similarity=1.0), seed=0)
    with torch.no_grad():
        right = digits.twin(images).argmax(1) == labels
    assert everything.indices.sort().values.tolist() == torch.nonzero(right).flatten().tolist()
    assert len(everything.indices) > len(found)


def test_a_class_of_one_repeated_image_shrinks_to_one(digits, samples):
    images, labels = samples[0][:150], samples[1][:150]
    four = torch.nonzero(labels == 4).flatten()
    images = images.clone()
    drawn = torch.rand(len(four), 1, 8, 8, generator=torch.Generator().manual_seed(1))
    images[four] = images[four[0]] + 0.002 * drawn
    images.clamp_(0, 1)
    record = select(digits.twin, images, labels, 20, QUICK, seed=0).record["per_class"]["4"]
    assert record["kept"] == 1 and record["duplicates"] == len(four) - 1


def test_enough_stable_samples_need_no_relaxing(digits, samples):
    images, labels = samples
    found = select(digits.twin, images, labels, 2, QUICK, seed=0)
    per = found.record["per_class"]
    assert all(count["kept"] == 2 and count["relaxed"] == 0 for count in per.values())
    assert (found.scores[found.indices] >= 0.7).all() and not found.record["notices"]
    assert found.record["short"] == [] and found.record["missing"] == []


def test_where_too_few_are_stable_the_next_best_are_kept_and_told(digits, samples):
    images, labels = samples
    found = select(digits.twin, images, labels, 4, replace(QUICK, least_score=1.01), seed=0)
    assert found.record["kept"] == 40
    assert all(c["relaxed"] == 4 and not c["stable"] for c in found.record["per_class"].values())
    assert len(found.record["short"]) == 10 and "40 of 40" in found.record["notices"][0]
    for k in range(10):
        scores = found.scores[found.indices[labels[found.indices] == k]]
        assert torch.equal(scores, scores.sort(descending=True).values)


def test_what_the_network_answers_otherwise_is_never_kept(digits, samples):
    images, labels = samples[0][:150], samples[1][:150].clone()
    labels[labels == 7] = 8
    found = select(digits.twin, images, labels, 50, replace(QUICK, least_score=-1.0), seed=0)
    with torch.no_grad():
        answers = digits.twin(images).argmax(1)
    assert torch.equal(answers[found.indices], labels[found.indices])
    assert found.record["missing"] == [7] and 7 in found.record["short"]
    assert found.record["per_class"]["8"]["given"] > found.record["per_class"]["8"]["answered"]
    assert any("no sample that the network answers" in notice for notice in found.record["notices"])


def test_samples_of_a_single_class_can_be_selected(digits, samples):
    where = samples[1][:150] == 3
    found = select(digits.twin, samples[0][:150][where], samples[1][:150][where], 3, QUICK, seed=0)
    assert found.record["kept"] >= 1 and len(found.record["missing"]) == 9


def test_nothing_wanted_is_refused(digits, samples):
    with pytest.raises(InputError, match="1 or more"):
        select(digits.twin, *samples, 0, QUICK, seed=0)
    with pytest.raises(InputError, match="a cosine"):
        Selection(similarity=1.5)


def test_distinct_prefers_the_first_and_compares_with_those_that_stay():
    # 20 degrees apart: the second resembles the first, the third the second alone.
    angles = torch.deg2rad(torch.tensor([0.0, 20.0, 40.0, 60.0]))
    rows = torch.stack([angles.cos(), angles.sin()], 1)
    limit = float(torch.deg2rad(torch.tensor(30.0)).cos())
    assert distinct(rows, limit).tolist() == [True, False, True, False]
    assert distinct(rows[:0], limit).tolist() == []


def test_diversity_by_hand_and_against_a_reference(digits):
    images = digits.test.images[:120].float() / 255
    labels = digits.test.labels[:120]
    with torch.no_grad():
        features = digits.twin.features(images).double()
        answers = digits.twin(images).argmax(1)

    def within(groups):
        squares = sum(
            (features[i] - features[groups == groups[i]].mean(0)).square().sum() for i in range(120)
        )
        return float(squares) / (120 - len(groups.unique()))

    found = diversity(digits.twin, images, labels, images)
    assert found.variance == pytest.approx(within(labels), rel=1e-5)
    assert found.reference == pytest.approx(within(answers), rel=1e-5)
    assert found.ratio == pytest.approx(found.variance / found.reference) and not found.low
    means = torch.stack([images[labels == k].mean(0) for k in range(10)])
    flat = 0.8 * means[labels] + 0.2 * images  # washed out towards prototypes
    assert diversity(digits.twin, flat, labels, images).low
    alone = diversity(digits.twin, images, labels)
    assert alone.ratio is None and not alone.low and alone.as_record()["reference"] is None


def test_one_sample_a_class_has_no_diversity(digits):
    with pytest.raises(InputError, match="no class has two"):
        diversity(digits.twin, torch.rand(3, 1, 8, 8), torch.arange(3))


def test_none_of_it_sets_a_global_seed():
    folder = Path(__file__).parents[2] / "src/bezoar/methods"
    for name in ("fred_selection", "sample_scoring", "sample_diversity", "channel_shuffling"):
        assert "torch.manual_seed" not in (folder / f"{name}.py").read_text()
