"""Grouped statistics: one forward of several batches is one forward after the other."""

import copy

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.func import functional_call

from bezoar import networks
from bezoar.errors import InputError
from bezoar.networks.generators import drawn
from bezoar.networks.grouped_norm import grouped_statistics


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def resnet():
    network = drawn(lambda: networks.build("resnet-8", width=4), 0).double()
    return (
        network,
        lambda groups: (
            numbers(4 * groups, 3, 8, 8)
            * torch.linspace(1, 3, 4 * groups)[:, None, None, None].double()
        ),
    )


def dense(momentum=0.1, track=True):
    def build():
        norm = nn.BatchNorm1d(5, momentum=momentum, track_running_stats=track)
        return nn.Sequential(nn.Linear(3, 5), norm, nn.ReLU(), nn.Linear(5, 2))

    network = drawn(build, 0).double()
    return (
        network,
        lambda groups: numbers(4 * groups, 3) + torch.arange(4.0 * groups)[:, None].double(),
    )


def buffers(network):
    return {name: value.clone() for name, value in network.named_buffers()}


def one_after_the_other(network, parts, updating):
    """Answers of separate forwards; those that do not update run on copies of the buffers."""
    return torch.cat(
        [
            network(part) if i in updating else functional_call(network, buffers(network), part)
            for i, part in enumerate(parts)
        ]
    )


CASES = {
    "resnet-8": resnet,
    "dense": dense,
    "cumulative average": lambda: dense(momentum=None),
    "no running statistics": lambda: dense(track=False),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("groups", "updating"),
    [(2, None), (2, (0,)), (2, (1,)), (2, ()), (3, (2, 0)), (1, None), (1, ())],
)
def test_outputs_gradients_and_running_statistics_are_those_of_separate_forwards(
    case, groups, updating
):
    network, batch = CASES[case]()
    network.train()
    reference = copy.deepcopy(network)
    x = batch(groups)
    for _ in range(2):  # the second time from other running statistics
        with grouped_statistics(network, groups, updating=updating):
            found = network(x)
        chosen = range(groups) if updating is None else updating
        wanted = one_after_the_other(reference, x.chunk(groups), chosen)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
        factors = numbers(*found.shape, seed=1)
        (factors * found).sum().backward()
        (factors * wanted).sum().backward()
    for ours, theirs in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-10)
    for name, value in reference.named_buffers():
        torch.testing.assert_close(network.get_buffer(name), value, rtol=0, atol=1e-10)


def test_without_groups_the_statistics_would_mix():
    network, batch = resnet()
    x = batch(2)
    with grouped_statistics(network, 2):
        apart = network(x)
    assert (apart - network(x)).abs().max() > 0.1


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    st.integers(1, 4), st.integers(2, 4), st.sets(st.integers(0, 3)), st.sampled_from([0.3, None])
)
def test_only_the_groups_that_update_enter_the_running_mean(groups, size, chosen, momentum):
    updating = tuple(index for index in sorted(chosen) if index < groups)
    norm = nn.BatchNorm1d(2, momentum=momentum).double()
    x = numbers(groups * size, 2)
    with grouped_statistics(norm, groups, updating=updating):
        norm(x)
    mean = torch.zeros(2, dtype=torch.float64)
    for count, index in enumerate(updating, 1):
        share = 1 / count if momentum is None else momentum
        mean = (1 - share) * mean + share * x.view(groups, size, 2)[index].mean(0)
    torch.testing.assert_close(norm.running_mean, mean)
    assert int(norm.num_batches_tracked) == len(updating)


def test_a_norm_in_eval_mode_takes_any_batch_as_ever():
    network, _ = dense()
    network.eval()
    x = numbers(5, 3)
    before = buffers(network)
    with grouped_statistics(network, 2):
        grouped = network(x)
    assert torch.equal(grouped, network(x))
    assert all(torch.equal(before[name], value) for name, value in network.named_buffers())


def test_norms_that_do_more_still_do_it():
    class NormAndReLU(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    norm = NormAndReLU(3).double()
    x = numbers(4, 3, 2, 2)
    with grouped_statistics(norm, 2, updating=(0,)):
        found = norm(x)
    wanted = torch.cat([nn.BatchNorm2d(3).double()(part).relu() for part in x.chunk(2)])
    torch.testing.assert_close(found, wanted)


def state(network):
    return [
        (
            {key: value for key, value in vars(module).items() if not key.startswith("_")},
            len(module._forward_hooks) + len(module._forward_pre_hooks),
        )
        for module in network.modules()
    ]


def test_nothing_is_left_of_it_also_after_an_exception():
    network, batch = resnet()
    own = network.get_submodule(next(n for n, m in network.named_modules() if "Norm" in repr(m)))
    own.forward = own.forward  # somebody else's
    before = state(network)
    with grouped_statistics(network, 2), grouped_statistics(network, 3):
        assert state(network) != before
    assert state(network) == before
    for count, error in ((5, InputError), (2, ValueError)):
        with pytest.raises(error), grouped_statistics(network, 2, updating=()):
            network(batch(2)[:count, :, :1, :1])
        assert state(network) == before


def test_a_batch_that_cannot_be_divided_is_refused():
    norm = nn.BatchNorm1d(2)
    with grouped_statistics(norm, 2), pytest.raises(InputError, match=r"of 5 .* 2 equal groups"):
        norm(torch.zeros(5, 2))


def test_hooks_of_a_norm_see_the_whole_batch():
    norm, seen = nn.BatchNorm2d(2).double(), []
    norm.register_forward_hook(lambda _, args, made: seen.append((args[0].shape, made.shape)))
    with grouped_statistics(norm, 2):
        norm(numbers(6, 2, 3, 3))
    assert seen == [((6, 2, 3, 3), (6, 2, 3, 3))]


def test_a_shared_norm_is_replaced_once():
    norm = nn.BatchNorm1d(2).double()
    with grouped_statistics(nn.Sequential(norm, norm), 2):
        norm(numbers(4, 2))
    assert int(norm.num_batches_tracked) == 2 and "forward" not in vars(norm)


@pytest.mark.parametrize(
    ("groups", "updating", "message"),
    [
        (0, None, "groups is 0"),
        (2.0, None, "groups is 2.0"),
        (True, None, "groups is True"),
        (2, (2,), "from 0 to 1"),
        (2, (-1,), "from 0 to 1"),
        (2, (True,), "from 0 to 1"),
    ],
)
def test_groups_that_are_none_are_refused(groups, updating, message):
    context = grouped_statistics(nn.Identity(), groups, updating=updating)
    with pytest.raises(InputError, match=message), context:
        pass
