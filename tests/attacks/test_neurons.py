import torch
from torch import nn

from bezoar.attacks.neurons import distance, optimise, strongest
from bezoar.classifier import Classifier
from bezoar.training import no_progress


def linear_features():
    """Features are the four pixels; the third one, then the first, has the largest weights."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[2.0, 0.0, -9.0, 1.0], [-3.0, 1.0, 1.0, 0.0]]))
    return Classifier(network, mean=0.0, std=1.0, input_size=(2, 2)).trace((1, 2, 2))


def test_the_neurons_with_the_largest_weights_are_chosen():
    images = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.1, 0.2, 0.9]]).view(2, 1, 2, 2)
    neurons, values = strongest(linear_features(), images, 2, 10.0)
    assert neurons.tolist() == [2, 0]
    assert torch.allclose(values, torch.tensor([3.0, 5.0]))


def test_a_neuron_that_never_changes_is_left_out():
    images = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.1, 0.3, 0.9]]).view(2, 1, 2, 2)
    assert strongest(linear_features(), images, 1, 10.0)[0].tolist() == [0]


def test_the_array_moves_towards_the_goal_and_stays_where_it_may():
    classifier = linear_features()
    images = torch.full((3, 1, 2, 2), 0.2)
    goal = torch.tensor([2, 0]), torch.tensor([0.7, 5.0])
    array = optimise(
        classifier,
        goal,
        torch.zeros(1, 2, 2),
        stamp=lambda array: images + array,
        project=lambda array: array.clamp(-0.6, 0.6),
        steps=100,
        progress=no_progress,
    )
    assert torch.allclose(array.flatten()[2], torch.tensor(0.5), atol=0.02)
    assert array.flatten()[0] == 0.6, "as far as it may"
    assert array.flatten()[1] == array.flatten()[3] == 0, "no other pixel matters"
    plain = ((0.2 + 0.5 - 0.7) ** 2 + (0.2 + 0.6 - 5.0) ** 2) / 2
    found = float(distance(classifier, images + array, goal))
    assert abs(found - plain) < 0.01
    assert classifier.network[1].weight.grad is None
