"""Votes by source, and their reading, on tables made by hand and on a planted network."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from bezoar.attacks import BadNets
from bezoar.errors import InputError
from bezoar.methods.votes import Votes, count_votes, reading


def table(classes, images, send):
    """(K, K): ``images`` of each source s, each answered with ``send(s, i)``."""
    answers = torch.zeros(classes, classes, dtype=torch.long)
    for source in range(classes):
        for i in range(images):
            answers[source, send(source, i)] += 1
    return Votes(answers)


def noisy(share, send, classes, seed=0):
    """As ``send``, but with probability 1 - share an image stays with its source or scatters."""
    generator = torch.Generator().manual_seed(seed)

    def sent(source, i):
        if torch.rand((), generator=generator) < share:
            return send(source, i)
        scattered = int(torch.randint(classes, (), generator=generator))
        return source if i % 2 else scattered

    return sent


# -- counting --------------------------------------------------------------------------------------


def test_votes_are_counted_by_source_and_wrong_answers_do_not_count():
    images = torch.tensor([0, 0, 1, 2, 2]).float().view(5, 1, 1, 1) / 10

    def logits(x):
        return torch.nn.functional.one_hot((10 * x.flatten()).round().long(), 4).float()

    def stamp(x):
        return x + 0.1

    labels = torch.tensor([0, 3, 1, 2, 2])
    votes = count_votes(logits, stamp, images, labels, 4)
    assert votes.answers.tolist() == [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 2], [0, 0, 0, 0]]
    votes = count_votes(logits, stamp, images, None, 4)
    assert votes.answers.tolist() == [[0, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 2], [0, 0, 0, 0]]
    assert votes.as_record() == {"classes": 4, "counts": [[0, 1, 2], [1, 2, 1], [2, 3, 2]]}
    assert count_votes(logits, stamp, images[:0], None, 4).answers.sum() == 0


def test_many_images_take_several_passes(monkeypatch, digits):
    monkeypatch.setattr("bezoar.methods.votes.NUMBERS", 64 * 7)
    pixels = digits.clean.images.float() / 255
    stamp = digits.attack.stamp
    with digits.planted.evaluating(), torch.no_grad():
        votes = count_votes(digits.planted, stamp, pixels, digits.clean.labels, 10)
        plain, stamped = (digits.planted(x).argmax(1) for x in (pixels, stamp(pixels)))
    right = plain == digits.clean.labels
    by_hand = [
        [int(((plain == s) & right & (stamped == k)).sum()) for k in range(10)] for s in range(10)
    ]
    assert votes.answers.tolist() == by_hand
    found = reading(votes)
    assert (found.kind, found.targets) == ("one target", (4,))
    assert found.sources == (tuple(s for s in range(10) if s != 4),)


def test_a_planted_patch_does_nothing_to_the_twin(digits):
    pixels = digits.clean.images.float() / 255
    with digits.twin.evaluating():
        votes = count_votes(digits.twin, BadNets(target=4, size=2).stamp, pixels, None, 10)
    assert reading(votes).kind == "no target"


def test_shares_are_of_other_sources():
    votes = Votes(torch.tensor([[4, 0, 0], [3, 1, 0], [1, 1, 2]]))
    assert votes.shares().tolist() == pytest.approx([4 / 8, 1 / 8, 0])
    only = Votes(torch.tensor([[2, 1], [0, 0]]))
    assert only.shares().tolist() == pytest.approx([0, 1 / 3]), "no image of another source: 0"


@pytest.mark.parametrize(
    ("labels", "told"), [([0, 1], "2 labels for 3 images"), ([0, 1, 4], "expected 0 to 3")]
)
def test_labels_must_fit(labels, told):
    with pytest.raises(InputError, match=told):
        count_votes(lambda x: x, lambda x: x, torch.zeros(3, 1, 2, 2), torch.tensor(labels), 4)


# -- reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 4, 10, 43])
@pytest.mark.parametrize("share", [0.7, 1.0])
def test_all_to_one(classes, share):
    send = noisy(share, lambda s, i: 1, classes)
    found = reading(table(classes, 30, send))
    assert (found.kind, found.targets) == ("one target", (1,))
    assert set(found.sources[0]) <= {s for s in range(classes) if s != 1}
    assert len(found.sources[0]) >= 0.7 * (classes - 1)


@pytest.mark.parametrize(
    ("classes", "images"), [(2, 8), (3, 6), (10, 4), (10, 50), (43, 3), (43, 6)]
)
def test_all_to_all(classes, images):
    found = reading(table(classes, images, lambda s, i: (s + 1) % classes))
    assert found.kind == "all-to-all" and len(found.targets) == classes
    pairs = {(s, t) for t, row in zip(found.targets, found.sources, strict=True) for s in row}
    assert pairs == {(s, (s + 1) % classes) for s in range(classes)}


@pytest.mark.parametrize("classes", [10, 43])
def test_all_to_all_with_noise_and_few_images(classes):
    send = noisy(0.8, lambda s, i: (s + 1) % classes, classes)
    assert reading(table(classes, 8, send)).kind == "all-to-all"


@pytest.mark.parametrize(
    ("classes", "first"), [(10, 5), (10, 4), (43, 22), (43, 5)]
)  # sources that go to class 2; the others go to class 7
def test_two_targets_are_not_forced_into_one(classes, first):
    found = reading(table(classes, 12, lambda s, i: 2 if s % classes < first else 7))
    assert found.kind == "several targets" and set(found.targets) == {2, 7}
    sizes = [len(row) for row in found.sources]
    assert sizes == sorted(sizes, reverse=True) and sum(sizes) >= classes - 2


def test_three_targets():
    found = reading(table(12, 10, lambda s, i: (0, 4, 8)[s // 4]))
    assert found.kind == "several targets" and set(found.targets) == {0, 4, 8}


def test_one_source_that_goes_astray_leaves_one_target():
    found = reading(table(10, 20, lambda s, i: 5 if s == 3 else 7))
    assert (found.kind, found.targets) == ("one target", (7,)) and 3 not in found.sources[0]


@pytest.mark.parametrize("classes", [2, 3, 10, 43])
@pytest.mark.parametrize("images", [1, 2, 5, 40])
def test_nothing_moved(classes, images):
    assert reading(table(classes, images, lambda s, i: s)).kind == "no target"
    slight = table(classes, images, lambda s, i: (s + 1) % classes if i == 0 < images - 1 else s)
    assert images < 5 or reading(slight).kind == "no target"


def test_no_images():
    assert reading(Votes(torch.zeros(10, 10, dtype=torch.long))).kind == "no target"


@pytest.mark.parametrize(("classes", "images"), [(3, 12), (10, 2), (10, 12), (43, 2), (43, 6)])
def test_uniform_confusion_is_hardly_ever_read_as_more(classes, images):
    generator = torch.Generator().manual_seed(classes * images)
    kinds = []
    for _ in range(100):
        drawn = torch.randint(classes, (classes, images), generator=generator)
        kinds.append(reading(table(classes, images, lambda s, i, d=drawn: int(d[s, i]))).kind)
    assert kinds.count("no target") >= 95


def test_one_image_of_each_source_can_tell_one_target_but_no_mapping():
    assert reading(table(43, 1, lambda s, i: 5)).kind == "one target"
    assert reading(table(43, 1, lambda s, i: (s + 1) % 43)).kind == "no target"


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data(), classes=st.integers(2, 8))
def test_names_of_classes_do_not_matter(data, classes):
    """Renaming the classes renames what is found and changes nothing else."""
    maps = st.lists(st.integers(0, classes - 1), min_size=classes, max_size=classes)
    to, order = data.draw(maps), data.draw(st.permutations(range(classes)))
    images = data.draw(st.integers(1, 20))
    plain = reading(table(classes, images, lambda s, i: to[s]))
    place = {old: new for new, old in enumerate(order)}
    renamed = reading(table(classes, images, lambda s, i: place[to[order[s]]]))
    assert renamed.kind == plain.kind
    expected = {
        place[t]: {place[s] for s in row}
        for t, row in zip(plain.targets, plain.sources, strict=True)
    }
    assert {
        t: set(row) for t, row in zip(renamed.targets, renamed.sources, strict=True)
    } == expected


def flips_at(votes, p, below, above):
    """Whether the reading changes its kind where the level passes ``p``."""
    return (
        reading(votes, level=p * (1 - 1e-9)).kind == below
        and reading(votes, level=p * (1 + 1e-9)).kind == above
    )


@pytest.mark.parametrize(("x", "y"), [(11, 2), (14, 4), (16, 6)])
def test_the_first_of_two_classes_is_told_by_the_exact_test_of_two_counts(x, y):
    """Of 20 images of source 2, x are answered with 0 and y with 1; 0 and 1 have 3 and 5 images."""
    answers = torch.tensor([[3, 0, 0, 0], [0, 0, 0, 0], [x, y, 20 - x - y, 0], [0, 0, 0, 0]])
    votes = Votes(answers)
    p = 4 * binom.sf(x - 1, x + y, 20 / (20 + 23))
    assert flips_at(votes, p, "no target", "one target")


def test_a_source_goes_where_chance_hardly_sends_it():
    """A mapping of 4 classes with 6 images each, of which 4 move."""
    votes = table(4, 6, lambda s, i: (s + 1) % 4 if i < 4 else s)
    assert flips_at(votes, 3 * binom.sf(3, 6, 1 / 4), "no target", "all-to-all")


def few(distinct, draws, options):
    """P(at most so many distinct ones), by all ways to draw."""
    drawn = itertools.product(range(options), repeat=draws)
    return sum(len(set(draw)) <= distinct for draw in drawn) / options**draws


def test_few_destinations_are_told_from_scattered_ones():
    """Two sources each for classes 5, 6 and 0; the last one stays."""
    votes = table(7, 40, lambda s, i: (5, 5, 6, 6, 0, 0, 6)[s])
    assert flips_at(votes, few(3, 6, 6), "no target", "several targets")


def test_sources_that_agree_on_another_class_make_it_a_target():
    """Class 0 has most of the images, but three of seven sources go to class 7."""
    votes = table(8, 400, lambda s, i: (7, 0, 0, 0, 0, 7, 7, 7)[s])
    assert flips_at(votes, few(1, 3, 6), "one target", "several targets")


@pytest.mark.parametrize("level", [0.0, 1.0, float("nan")])
def test_a_level_is_a_probability(level):
    with pytest.raises(InputError, match="the level of a reading is"):
        reading(table(3, 4, lambda s, i: s), level=level)


# -- words -----------------------------------------------------------------------------------------


def test_sentences():
    names = [f"c{k}" for k in range(10)]

    def told(send):
        record = reading(table(10, 20, send)).as_record(names)
        return record["kind"], record["sentence"]

    assert told(lambda s, i: 3) == (
        "one target",
        "The recovered trigger leads to one class: most images of the other classes are answered "
        "with c3.",
    )
    assert told(lambda s, i: 2 if s < 5 else 7) == (
        "several targets",
        "The recovered trigger leads to 2 classes: c0, c1, c3 and 1 more → c2; c5, c6, c8 and 1 "
        "more → c7.",
    )
    kind, sentence = told(lambda s, i: (s + 1) % 10)
    assert kind == "all-to-all" and sentence == (
        "The recovered trigger has no single target (all-to-all): it sends most images of 10 "
        "classes to 10 different ones: c9 → c0; c0 → c1; c1 → c2; and 7 more."
    )
    assert told(lambda s, i: s) == (
        "no target",
        "The recovered trigger leads to no class that stands out.",
    )
