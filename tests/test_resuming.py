import msgspec
import pytest
import torch
from test_training import SHORT, bars, classifier, same, state
from torch import nn

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.training import BatchHook, Recipe, fit

LONG = Recipe(epochs=4, batch_size=16, learning_rate=0.05, crop_padding=1, ema=0.9)


class Stopped(Exception):
    """Stands for a power cut after an epoch."""


def stop_after(epochs):
    def before(epoch):
        if epoch == epochs:
            raise Stopped

    return before


class Halved(nn.Module):
    """As many weights whatever ``parts`` is."""

    def __init__(self, parts):
        super().__init__()
        self.parts, self.fc = parts, nn.Linear(36, 2)

    def forward(self, images):
        return self.fc(images.flatten(1) / self.parts)


def test_a_checkpoint_of_another_network_with_the_same_shapes_is_refused(tmp_path):
    def of(parts=1, **scale):
        torch.manual_seed(0)
        return Classifier(Halved(parts), **{"mean": 0.5, "std": 0.5, **scale})

    file = tmp_path / "checkpoint"
    with pytest.raises(Stopped):
        fit(of(), bars(), LONG, seed=3, checkpoint=file, before_epoch=stop_after(1))
    for other in (of(parts=2), of(mean=0.4), of(std=0.4)):
        with pytest.raises(InputError, match="other images, network"):
            fit(other, bars(), LONG, seed=3, checkpoint=file)
    fit(of(), bars(), LONG, seed=3, checkpoint=file)


class Noise(BatchHook):
    """Adds a learned shade to every image; has a module and an optimizer of its own."""

    def __init__(self):
        self.shade = nn.Parameter(torch.zeros(1, 1, 6, 6))
        self.optimizer = torch.optim.SGD([self.shade], 0.1, momentum=0.9)

    def batch(self, images, labels, generator):
        noise = torch.rand(images.shape, generator=generator)
        return (images + 0.1 * noise + self.shade).clamp(0, 1), labels

    def penalty(self, classifier):
        return self.shade.square().sum()

    def after_backward(self):
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state_dict(self):
        return {"shade": self.shade.detach(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state):
        self.shade.data.copy_(state["shade"])
        self.optimizer.load_state_dict(state["optimizer"])


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("with_hook", [False, True])
def test_a_resumed_training_ends_as_an_uninterrupted_one(tmp_path, epochs, with_hook):
    def hook():
        return Noise() if with_hook else None

    whole, resumed = classifier(dropout=0.2), classifier(dropout=0.2)
    expected = fit(whole, bars(), LONG, seed=3, hook=hook())
    file = tmp_path / "checkpoint"
    with pytest.raises(Stopped):
        fit(
            resumed,
            bars(),
            LONG,
            seed=3,
            hook=hook(),
            checkpoint=file,
            before_epoch=stop_after(epochs),
        )
    assert file.exists()
    other = classifier(seed=9, dropout=0.2)  # a new process has other random weights
    started = []
    history = fit(
        other, bars(), LONG, seed=3, hook=hook(), checkpoint=file, before_epoch=started.append
    )
    assert started == list(range(epochs, 4)), "finished epochs are not done again"
    assert same(state(whole), state(other))
    assert history.loss == expected.loss
    assert list(tmp_path.iterdir()) == [file], "it goes when what was trained is safe"
    started.clear()
    late = classifier(seed=8, dropout=0.2)
    fit(late, bars(), LONG, seed=3, hook=hook(), checkpoint=file, before_epoch=started.append)
    assert started == [] and same(state(whole), state(late)), "nothing is trained again"


class Stamps(BatchHook):
    """Poisons what it is given, as some attacks do; the images stay the same."""

    def __init__(self, target):
        self.target = target

    def facts(self):
        return {"target": self.target}


def test_the_checkpoint_of_another_attack_is_refused(tmp_path):
    file = tmp_path / "checkpoint"
    with pytest.raises(Stopped):
        fit(
            classifier(), bars(), LONG, seed=3, hook=Stamps(0), checkpoint=file,
            before_epoch=stop_after(1),
        )  # fmt: skip
    with pytest.raises(InputError, match="belongs to a training with other images, network, att"):
        fit(classifier(), bars(), LONG, seed=3, hook=Stamps(3), checkpoint=file)


def interrupted(file, recipe=LONG):
    with pytest.raises(Stopped):
        fit(classifier(), bars(), recipe, seed=3, checkpoint=file, before_epoch=stop_after(1))


@pytest.mark.parametrize("what", ["seed", "recipe", "images"])
def test_the_checkpoint_of_another_training_is_refused_and_stays(tmp_path, what):
    file = tmp_path / "checkpoint"
    interrupted(file)
    before = file.read_bytes()
    recipe = msgspec.structs.replace(LONG, learning_rate=0.04) if what == "recipe" else LONG
    images = bars(seed=1) if what == "images" else bars()
    with pytest.raises(InputError, match="belongs to a training with other"):
        fit(classifier(), images, recipe, seed=4 if what == "seed" else 3, checkpoint=file)
    assert file.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_a_broken_checkpoint_is_named(tmp_path, content):
    file = tmp_path / "checkpoint"
    interrupted(file)
    file.write_bytes(file.read_bytes()[:500] if content is None else content)
    with pytest.raises(InputError, match=r"cannot be read.*delete it"):
        fit(classifier(), bars(), LONG, seed=3, checkpoint=file)


def test_a_checkpoint_runs_no_code(tmp_path):
    file, trace = tmp_path / "checkpoint", tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(trace)!r}, 'w')",))

    torch.save({"fingerprint": "", "state": Evil()}, file)
    with pytest.raises(InputError, match="cannot be read"):
        fit(classifier(), bars(), LONG, seed=3, checkpoint=file)
    assert not trace.exists()


def test_the_average_is_the_moving_average_of_weights_and_statistics():
    seen = []

    class Watch(BatchHook):
        def __init__(self, model):
            self.model = model

        def after_backward(self):
            seen.append(state(self.model))

    recipe = msgspec.structs.replace(SHORT, ema=0.9)
    model = classifier()
    average = state(model)
    fit(model, bars(), recipe, seed=0, hook=Watch(model))
    for step, now in enumerate(seen, 1):
        keep = min(0.9, (1 + step) / (10 + step))
        for name, value in now.items():
            if value.is_floating_point():
                average[name] = keep * average[name] + (1 - keep) * value
    found = state(model)
    for name, value in average.items():
        if value.is_floating_point():
            torch.testing.assert_close(found[name], value)
    assert not torch.equal(found["0.weight"], seen[-1]["0.weight"])
    assert torch.equal(found["1.num_batches_tracked"], seen[-1]["1.num_batches_tracked"])


def test_a_hook_changes_batches_before_augmentation_and_adds_to_the_loss():
    seen = []

    class Whiten(BatchHook):
        def batch(self, images, labels, generator):
            seen.append((float(images.min()), float(images.max()), images.shape))
            return torch.ones_like(images), 1 - labels

    swapped, plain = classifier(), classifier()
    fit(swapped, bars(), SHORT, seed=0, hook=Whiten())
    fit(plain, bars(), SHORT, seed=0)
    assert len(seen) == 2 * 5 and all(low >= 0 and high <= 1 for low, high, _ in seen)
    white = torch.ones(4, 1, 6, 6)
    with torch.no_grad():
        assert not torch.allclose(swapped(white), plain(white))


def test_label_smoothing_is_that_of_cross_entropy():
    def smoothed(model, images, labels, generator):
        return nn.functional.cross_entropy(model(images), labels, label_smoothing=0.2)

    first, second = classifier(), classifier()
    fit(first, bars(), msgspec.structs.replace(SHORT, label_smoothing=0.2), seed=0)
    fit(second, bars(), SHORT, seed=0, loss=smoothed)
    assert same(state(first), state(second))


def test_shifts_can_bring_in_the_mirror_image():
    first, second = classifier(), classifier()
    recipe = msgspec.structs.replace(SHORT, crop_padding=2)
    fit(first, bars(), recipe, seed=0)
    fit(second, bars(), msgspec.structs.replace(recipe, border="reflect"), seed=0)
    assert not same(state(first), state(second))


@pytest.mark.slow
def test_a_compiled_training_learns_the_same_and_leaves_no_trace():
    model, plain = classifier(), classifier()
    fit(model, bars(), msgspec.structs.replace(SHORT, compile=True), seed=0)
    fit(plain, bars(), SHORT, seed=0)
    assert model.network._compiled_call_impl is None
    for name, value in state(model).items():
        torch.testing.assert_close(value, state(plain)[name], rtol=1e-3, atol=1e-4)
