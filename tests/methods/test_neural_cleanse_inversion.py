import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bezoar import networks
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods import neural_cleanse_inversion
from bezoar.methods.neural_cleanse_inversion import invert, inverted_for
from bezoar.methods.neural_cleanse_schedule import Inversion
from bezoar.methods.neural_cleanse_triggers import classes_in_a_pass

SHORT = Inversion(epochs=14, steps=2, batch_size=6, success=0.9, stop_patience=2)


def plain_loop(logits, images, labels, k, settings, *, seed):
    """One class after the other, as the official code has it, with numbers instead of a class."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + k)
    uniform = torch.rand(1 + images.shape[1], *images.shape[2:], generator=generator)
    free = torch.atanh((2 * uniform - 1).clamp(-0.999, 0.999)).to(images).requires_grad_()
    adam = torch.optim.Adam([free], settings.learning_rate, betas=settings.betas)
    with torch.no_grad():
        answers = logits(images).argmax(1)
    allowed = [i for i in range(len(images)) if k not in (int(labels[i]), int(answers[i]))]
    stream = []
    penalty, best, best_norm = 0.0, None, math.inf
    good = bad = warm = stale = 0
    up = down = False
    epochs = 0
    while epochs < settings.epochs:
        epochs += 1
        hits, norms = [], []
        for _ in range(settings.steps):
            while len(stream) < settings.batch_size:
                order = torch.randperm(len(allowed), generator=generator).tolist()
                stream += [allowed[i] for i in order]
            batch, stream = stream[: settings.batch_size], stream[settings.batch_size :]
            m, d = ((torch.tanh(part) + 1) / 2 for part in (free[:1], free[1:]))
            z = logits((1 - m) * images[batch] + m * d)
            target = torch.full((len(batch),), k)
            loss = F.cross_entropy(z, target) + penalty * m.sum()
            (free.grad,) = torch.autograd.grad(loss, [free])
            adam.step()
            hits.append(float((z.argmax(1) == target).double().mean()))
            norms.append(float(m.detach().sum()))
        success, norm = sum(hits) / len(hits), sum(norms) / len(norms)
        improved = success >= settings.success and norm < best_norm
        if improved:
            best_norm = norm
        if improved or best_norm == math.inf:
            best = (torch.tanh(free.detach()) + 1) / 2
        stale = 0 if improved else stale + (best_norm < math.inf)
        if up and down and stale >= settings.stop_patience:
            break
        if penalty == 0:
            warm = warm + 1 if success >= settings.success else 0
            if warm >= settings.patience:
                penalty, good, bad, up, down = 1 / free[0].numel(), 0, 0, False, False
        good, bad = (good + 1, 0) if success >= settings.success else (0, bad + 1)
        if good >= settings.patience:
            good, penalty, up = 0, penalty * settings.multiplier, True
        elif bad >= settings.patience:
            bad, penalty, down = 0, penalty / settings.multiplier**1.5, True
    return best, best_norm, penalty, epochs


@pytest.fixture(scope="module")
def doubles(digits):
    """The planted network in float64, where a different order of sums cannot decide anything."""
    classifier = digits.planted.copy().trace(digits.clean.shape)
    classifier.network.double().eval()
    return classifier, digits.clean.images[:80].double() / 255, digits.clean.labels[:80]


@pytest.mark.parametrize("together", [10, 3])
def test_classes_at_once_equal_one_after_the_other(together, doubles, monkeypatch):
    classifier, images, labels = doubles
    monkeypatch.setattr(
        neural_cleanse_inversion, "classes_in_a_pass", lambda _count, _images: together
    )
    triggers = invert(classifier, images, labels, range(10), SHORT, seed=5)
    taken = set()
    for k in range(10):
        both, best_norm, penalty, epochs = plain_loop(classifier, images, labels, k, SHORT, seed=5)
        assert torch.allclose(triggers.masks[k], both[:1], atol=1e-6)
        assert torch.allclose(triggers.patterns[k], both[1:], atol=1e-6)
        assert triggers.penalties[k] == pytest.approx(penalty, rel=1e-6)
        assert triggers.epochs[k] == epochs
        norm = math.inf if best_norm == math.inf else float(both[:1].sum())
        assert float(triggers.norms[k]) == pytest.approx(norm, abs=1e-6)
        taken.add(epochs)
    assert len(taken) > 1, "no class left the batch early, so leaving was not tested"
    assert triggers.passes == sum(triggers.epochs) * SHORT.steps * SHORT.batch_size


def test_how_many_classes_share_a_pass():
    on_cpu = torch.zeros(1, 3, 32, 32)
    assert [classes_in_a_pass(count, on_cpu) for count in (1, 16, 64, 65)] == [64, 4, 1, 1]
    large = torch.zeros(1, 3, 224, 224)
    assert classes_in_a_pass(9, large) == 3, "27 images fill the memory that a pass may take"


def test_a_class_gets_the_same_trigger_in_whatever_company_it_is(doubles):
    classifier, images, labels = doubles
    many = invert(classifier, images, labels, range(10), SHORT, seed=1)
    few = invert(classifier, images, labels, [7, 4], SHORT, seed=1)
    assert few.classes == (7, 4)
    for row, k in enumerate(few.classes):
        assert torch.allclose(few.masks[row], many.masks[k], atol=1e-6)
        assert float(few.success[row]) == float(many.success[k])
    other = invert(classifier, images, labels, [7, 4], SHORT, seed=2)
    assert not torch.allclose(other.masks, few.masks, atol=1e-3)


def test_the_network_gets_no_gradients_and_keeps_its_flags(digits):
    network = digits.planted.copy().network.eval()
    next(network.parameters()).requires_grad_(False)
    flags = [p.requires_grad for p in network.parameters()]
    images = digits.clean.images[:40].float() / 255
    with torch.no_grad():  # the caller's mode must not matter
        invert(network, images, None, [0, 1], SHORT, seed=0)
    assert [p.requires_grad for p in network.parameters()] == flags
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("labelled", [True, False])
def test_a_classifier_is_inverted_in_eval_mode_and_keeps_its_own(labelled, digits):
    few = digits.clean.subset(range(40))
    images = few if labelled else ImageSet(few.images)
    classifier = digits.planted.copy().trace(few.shape)
    classifier.network.train()
    heard = []
    found = inverted_for(
        classifier, images, (7, 4), SHORT, seed=3, progress=lambda _, share: heard.append(share)
    )
    assert classifier.network.training
    assert heard and heard == sorted(heard)
    pixels = images.images.float() / 255
    with classifier.evaluating():
        by_hand = invert(classifier, pixels, images.labels, [7, 4], SHORT, seed=3)
    assert found.classes == by_hand.classes and found.counted == by_hand.counted
    assert torch.equal(found.masks, by_hand.masks)
    assert torch.equal(found.patterns, by_hand.patterns)


# -- functions whose best trigger is known ---------------------------------------------------------


def one_pixel(images):
    """Class 1 where pixel (2, 3) is bright, else class 0."""
    return torch.stack([torch.zeros(len(images)), 20 * (images[:, 0, 2, 3] - 0.8)], 1)


def dark_images(count=40):
    return 0.5 * torch.rand(count, 1, 5, 5, generator=torch.Generator().manual_seed(0))


def test_the_mask_is_the_one_pixel_that_decides():
    triggers = invert(one_pixel, dark_images(), None, [1], Inversion(epochs=60), seed=0)
    mask = triggers.masks[0, 0]
    assert int(mask.argmax()) == 2 * 5 + 3 and float(triggers.patterns[0, 0, 2, 3]) > 0.9
    assert float(mask.sum()) < 2 and float(mask.sum() - mask[2, 3]) < 0.7
    assert float(triggers.success[0]) == 1 and triggers.counted == (40,)


def test_a_class_that_nothing_reaches_has_an_infinite_norm_and_the_last_mask():
    def never(images):
        return F.pad(one_pixel(images), (0, 1), value=-1000.0)

    triggers = invert(never, dark_images(), None, [1, 2], Inversion(), seed=0)
    assert math.isfinite(triggers.norms[0])
    assert triggers.norms[1] == math.inf and triggers.success[1] == 0
    assert triggers.epochs[1] == Inversion().epochs
    assert triggers.penalties[1] == 0, "a mask that never worked was made smaller"


def watching(seen):
    def logits(images):
        seen.append(images.detach())
        return one_pixel(images)

    return logits


def test_own_images_do_not_count_by_label_or_by_answer():
    images = dark_images(30)
    images[10:20, 0, 2, 3] = 1.0  # answered with 1
    labels = torch.zeros(30, dtype=torch.int64)
    labels[:10] = 1
    assert invert(one_pixel, images, labels, [1], SHORT, seed=0).counted == (10,)
    assert invert(one_pixel, images, None, [1], SHORT, seed=0).counted == (20,)
    assert invert(one_pixel, images, labels, [0, 1], SHORT, seed=0).counted == (0, 10)
    everything = Inversion(epochs=3, exclude_own=False)
    assert invert(one_pixel, images, labels, [0, 1], everything, seed=0).counted == (30, 30)


def test_only_counted_images_are_stamped():
    images = dark_images(30)
    images[20:] = math.nan  # would show in every pixel that follows
    already = torch.zeros(1, 30, dtype=torch.bool)
    already[0, 20:] = True
    seen = []
    settings = Inversion(epochs=5, batch_size=8, exclude_own=False)
    triggers = invert(watching(seen), images, None, [1], settings, seed=0, already=already)
    assert triggers.counted == (20,)
    assert sum(len(x) == 8 for x in seen) == 5 * settings.steps
    assert not any(bool(x.isnan().any()) for x in seen)


def test_a_class_without_a_counted_image_is_left_alone():
    already = torch.ones(2, 40, dtype=torch.bool)
    already[0] = False
    settings = Inversion(epochs=3, exclude_own=False)
    seen = []
    triggers = invert(
        watching(seen), dark_images(), None, [0, 1], settings, seed=0, already=already
    )
    assert triggers.counted == (40, 0) and triggers.epochs == (3, 0)
    assert triggers.norms[1] == math.inf and triggers.success[1] == 0
    assert all(len(x) in (settings.batch_size, 40) for x in seen), "it was in the batch"
    none = invert(one_pixel, dark_images(), None, [0], SHORT, seed=0)
    assert none.counted == (0,) and none.passes == 0


# -- what is done with triggers --------------------------------------------------------------------


def test_stamped_and_carried_equal_their_plain_definitions(doubles):
    classifier, images, labels = doubles
    triggers = invert(classifier, images[:40], labels[:40], range(10), SHORT, seed=0)
    rest, rest_labels = images[40:], labels[40:]
    for given in (rest_labels, None):
        carried = triggers.carried(classifier, rest, given)
        for k in range(10):
            m, d = triggers.masks[k], triggers.patterns[k]
            assert torch.equal(triggers.stamp(rest, k), (1 - m) * rest + m * d)
            with torch.no_grad():
                before, after = (classifier(x).argmax(1) for x in (rest, triggers.stamp(rest, k)))
            counted = [
                i
                for i in range(len(rest))
                if int(before[i]) != k and (given is None or int(given[i]) != k)
            ]
            share = sum(int(after[i]) == k for i in counted) / len(counted)
            assert float(carried[k]) == pytest.approx(share)


def test_without_images_of_other_classes_nothing_is_carried():
    triggers = invert(one_pixel, dark_images(), None, [1], SHORT, seed=0)
    bright = dark_images()
    bright[:, 0, 2, 3] = 1.0
    assert triggers.carried(one_pixel, bright).tolist() == [0.0]
    with pytest.raises(InputError, match=r"class 0 has no trigger; there are ones for \(1,\)"):
        triggers.stamp(bright, 0)


def test_colour_images_and_a_network_with_dropout():
    torch.manual_seed(0)
    network = nn.Sequential(networks.build("resnet-8", width=4), nn.Dropout(0.5)).eval()
    classifier = Classifier(network, mean=0.5, std=0.25)
    images = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    settings = Inversion(epochs=2, batch_size=4)
    first, second = (
        invert(classifier, images, None, range(10), settings, seed=3) for _ in range(2)
    )
    assert first.masks.shape == (10, 1, 16, 16) and first.patterns.shape == (10, 3, 16, 16)
    assert torch.equal(first.masks, second.masks) and torch.equal(first.patterns, second.patterns)
    assert all(0 <= float(value) <= 1 for value in (first.masks.min(), first.masks.max()))


def test_bad_input_is_refused_before_any_work():
    def untouched(_images):
        raise AssertionError("the network ran")

    good = dark_images()
    for images, labels, classes, already, message in (
        (good.byte(), None, [0], None, "images are torch.uint8"),
        (good[:0], None, [0], None, "expected at least one"),
        (good, torch.zeros(3), [0], None, r"\(3,\) labels for 40 images"),
        (good, None, [], None, "expected indices from 0, each once"),
        (good, None, [1, 1], None, "each once"),
        (good, None, [-1], None, "indices from 0"),
        (good, None, [0, 1], torch.zeros(2, 3), r"expected \(2, 40\)"),
    ):
        with pytest.raises(InputError, match=message):
            invert(untouched, images, labels, classes, SHORT, seed=0, already=already)
