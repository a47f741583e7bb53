"""Training a GAN: it learns, repeats itself, goes on after a stop, and says what is wrong."""

import msgspec
import pytest
import torch

from bezoar.device import seeded
from bezoar.errors import InputError
from bezoar.generators import AdversarialTraining, train_generator
from bezoar.images import ImageSet
from bezoar.networks.image_generators import ImageGenerator


def few(settings, **changes):
    return msgspec.structs.replace(settings, steps=12, **changes)


def drawn(generator, count=600):
    z = generator.latents(count, torch.Generator().manual_seed(5))
    with torch.no_grad():
        return generator(z)


def gap(images, reference):
    """How far two sets are apart in the means and deviations of their pixels."""
    moments = (images.mean(0) - reference.mean(0), images.std(0) - reference.std(0))
    return sum(float(part.abs().mean()) for part in moments)


def same(one, other):
    state = other.network.state_dict() | other.critic.state_dict()
    own = one.network.state_dict() | one.critic.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[n], state[n]) for n in own)


def test_images_come_closer_to_the_public_ones(gan, digit_images, gan_settings):
    reference = digit_images.images.float() / 255
    with seeded(torch.device("cpu"), 0):
        untrained = ImageGenerator(gan.shape, latent=gan.latent, width=8).eval()
    with torch.no_grad():
        before = untrained(gan.latents(600, torch.Generator().manual_seed(5)))
    assert gap(drawn(gan), reference) < 0.6 * gap(before, reference)


def test_the_critic_finds_noise_less_natural_than_public_images(gan, digit_images):
    reference = digit_images.images[:500].float() / 255
    noise = torch.rand(500, *gan.shape, generator=torch.Generator().manual_seed(0))
    z = torch.zeros(500, gan.latent)
    of_noise, of_digits = (gan.unnaturalness(z, images) for images in (noise, reference))
    assert float((of_noise > of_digits).float().mean()) > 0.95


def test_running_statistics_are_those_of_the_averaged_weights(gan):
    """In eval mode the generator makes what it makes with the statistics of a large batch."""
    z = gan.latents(2000, torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = gan(z)
        by_batch = gan.to(torch.device("cpu")).network.train()(z)
    assert float((expected - by_batch).abs().mean()) < 0.02


def test_the_record_says_how_it_was_made(gan, digit_images, gan_settings):
    origin = gan.origin
    assert gan.apart and "without the suspect" in gan.independence
    assert origin["settings"] == msgspec.to_builtins(gan_settings)
    assert origin["images"]["number"] == len(digit_images) == 1000
    assert origin["images"]["sha256"] == ImageSet(digit_images.images).sha256()
    assert origin["seed"] == 0 and origin["steps"] == 140 and origin["seconds"] > 0
    assert {len(curve) for curve in origin["losses"].values()} == {70}


def test_the_same_seed_gives_the_same_generator_and_global_numbers_stay(digit_images, gan_settings):
    settings = few(gan_settings, flip=True)
    state = torch.get_rng_state()
    made = [train_generator(digit_images, None, settings, seed=s) for s in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert same(made[0], made[1]) and not same(made[0], made[2])


class Stopped(Exception):
    pass


PENALISED = {"loss": "wasserstein", "norm": "instance", "gradient_penalty": 10.0}


@pytest.mark.parametrize(
    "changes", [{}, {**PENALISED, "critic_steps": 2}], ids=["hinge", "penalty"]
)
def test_a_stopped_training_ends_as_if_it_had_not_been(
    changes, digit_images, gan_settings, tmp_path, monkeypatch
):
    monkeypatch.setattr("bezoar.generators.curves._STEPS_TO_LOSE", 5)
    settings, file = few(gan_settings, **changes), tmp_path / "checkpoint"
    whole = train_generator(digit_images, None, settings, seed=3)

    def stop(_what, share):
        if share > 0.6:
            raise Stopped

    with pytest.raises(Stopped):
        train_generator(digit_images, None, settings, seed=3, progress=stop, resume=file)
    assert file.exists()
    shares = []
    resumed = train_generator(
        digit_images, None, settings, seed=3, resume=file,
        progress=lambda _what, share: shares.append(share),
    )  # fmt: skip
    assert shares[0] > 0.4 and shares[-1] == 1
    assert same(resumed, whole) and file.exists(), "it goes when the generator is safe"
    assert resumed.origin["losses"] == whole.origin["losses"]


def test_the_checkpoint_of_another_training_is_refused(
    digit_images, gan_settings, tmp_path, monkeypatch
):
    monkeypatch.setattr("bezoar.generators.curves._STEPS_TO_LOSE", 1)
    file = tmp_path / "checkpoint"

    def stop(_what, share):
        if share > 0.5:
            raise Stopped

    with pytest.raises(Stopped):
        train_generator(digit_images, None, few(gan_settings), seed=3, progress=stop, resume=file)
    content = file.read_bytes()
    others = [
        (digit_images, few(gan_settings), 4),
        (digit_images, few(gan_settings, learning_rate=1e-3), 3),
        (digit_images.subset(range(900)), few(gan_settings), 3),
    ]
    for images, settings, seed in others:
        with pytest.raises(InputError, match="belongs to a training with other images"):
            train_generator(images, None, settings, seed=seed, resume=file)
    assert file.read_bytes() == content


def test_images_are_stretched_to_the_size_that_is_asked_for(digit_images, gan_settings):
    made = train_generator(digit_images, (16, 12), few(gan_settings), seed=0)
    assert made.shape == (1, 16, 12) and made.origin["images"]["shape"] == [1, 16, 12]


def test_published_settings_are_those_of_the_table():
    settings = AdversarialTraining.published()
    assert (settings.loss, settings.gradient_penalty, settings.critic_steps) == (
        "wasserstein", 10, 5
    )  # fmt: skip
    assert settings.learning_rate == settings.critic_learning_rate == 2e-4
    assert settings.betas == (0.5, 0.999) and settings.batch_size == 64
    assert (settings.latent, settings.width, settings.norm) == (100, 64, "instance")
    assert settings.generator_steps(6400) == 100 * 100 // 5 and settings.ema == 0


def test_progress_tells_the_losses(digit_images, gan_settings):
    told = []
    train_generator(digit_images, None, few(gan_settings), seed=0,
                    progress=lambda what, _share: told.append(what))  # fmt: skip
    assert len(told) == 12 and told[-1].startswith("training a generator (critic ")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 1}, "batch_size is 1"),
        ({"learning_rate": -1.0}, "learning_rate is -1"),
        ({"ema": 1.0}, "ema or one of betas is 1"),
        ({"epochs": 0.0}, "epochs is 0"),
        ({"gradient_penalty": 1.0}, "belongs to the loss wasserstein"),
    ],
)
def test_settings_out_of_range_are_told(settings, said):
    with pytest.raises(InputError, match=said):
        AdversarialTraining(**settings)


def test_too_few_images_and_a_divergence_are_told(digit_images, gan_settings):
    with pytest.raises(InputError, match="there are 31 public images, and a batch has 32"):
        train_generator(digit_images.subset(range(31)), None, gan_settings, seed=0)
    wild = few(gan_settings, learning_rate=1e30, critic_learning_rate=1e30)
    with pytest.raises(InputError, match="use smaller learning rates"):
        train_generator(digit_images, None, wild, seed=0)
