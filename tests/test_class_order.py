"""Labels in another order than the classes, told apart from a weak network."""

import pytest
import torch

from bezoar.checks import check_input
from bezoar.class_order import find_order
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet


class Answers(torch.nn.Module):
    """Answers the class that the image's only pixel holds."""

    def __init__(self, classes):
        super().__init__()
        self.fc = torch.nn.Linear(classes, classes)
        with torch.no_grad():
            self.fc.weight.copy_(torch.eye(classes))
            self.fc.bias.zero_()

    def forward(self, images):
        shown = (images[:, 0, 0, 0] * 255).round().long() % self.fc.in_features
        return self.fc(torch.nn.functional.one_hot(shown, self.fc.in_features).float())


def given(answers, labels, classes):
    pixels = answers.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return Classifier(Answers(classes), mean=0.0, std=1.0), ImageSet(pixels, labels)


def as_text(classes):
    """The label that each class gets where the names of the folders are sorted as text."""
    names = sorted(map(str, range(classes)))
    return torch.tensor([names.index(str(k)) for k in range(classes)])


@pytest.mark.parametrize(("classes", "each"), [(12, 10), (43, 4), (200, 3)])
def test_folders_that_were_sorted_as_text_are_recognised(classes, each):
    shown = torch.arange(classes).repeat(each)
    labels = as_text(classes)[shown]
    order = find_order(shown, labels, classes)
    assert order.right == 1 and order.as_given < 0.5
    assert all(int(labels[shown == k][0]) == label for label, k in order.answers.items())
    with pytest.raises(InputError, match=r"100\.0 % once the classes are put in another order"):
        check_input(*given(shown, labels, classes))


def test_a_network_that_is_weak_or_answers_one_class_has_no_other_order():
    labels = torch.arange(10).repeat(30)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(10, (300,), generator=generator)
    weak = torch.where(torch.rand(300, generator=generator) < 0.35, labels, noise)
    assert find_order(weak, labels, 10).right < 0.5
    assert any("answers only 4" in notice for notice in check_input(*given(weak, labels, 10)))
    one = torch.full((300,), 7)
    assert find_order(one, labels, 10).right == pytest.approx(0.1)
    with pytest.raises(InputError, match="no better than chance"):
        check_input(*given(one, labels, 10))


def test_one_frequent_class_that_is_taken_for_another_is_no_other_order():
    """As where most of the images given as class 0 show class 7."""
    labels = torch.cat([torch.zeros(120).long(), torch.arange(10).repeat(8)])
    answers = torch.cat([torch.full((110,), 7), torch.zeros(10).long(), torch.arange(10).repeat(8)])
    order = find_order(answers, labels, 10)
    assert order.answers[7] == 7 and order.as_given > 0.85
    assert any("answers only 4" in told for told in check_input(*given(answers, labels, 10)))


def test_a_network_that_often_answers_the_next_class_is_weak():
    labels = torch.arange(8).repeat(50)
    often = torch.rand(400, generator=torch.Generator().manual_seed(2)) < 0.6
    answers = torch.where(often, (labels + 1).clamp(max=7), labels)
    assert any("answers only 4" in told for told in check_input(*given(answers, labels, 8)))


def test_many_classes_cost_no_time_to_speak_of():
    labels = torch.arange(20_000).repeat(2)
    assert find_order((labels + 1) % 20_000, labels, 20_000).right == 1


def test_chance_finds_no_order_among_many_classes():
    """Each label has few images, so an order that fits some of them is easily found."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(100).repeat(4)
    answers = torch.randint(100, (400,), generator=generator)
    assert find_order(answers, labels, 100).right < 0.1


def test_one_image_of_each_label_finds_an_order_that_nothing_confirms():
    labels = torch.arange(10)
    with pytest.raises(InputError, match="no better than chance"):
        check_input(*given((labels + 1) % 10, labels, 10))
