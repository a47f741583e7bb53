"""The autoencoder: what it minimises, and that its decoder makes images like the public ones."""

import msgspec
import pytest
import torch

from bezoar.errors import InputError
from bezoar.generators import Autoencoding, train_autoencoder
from bezoar.generators.autoencoding import divergence_from_normal


@pytest.fixture(scope="module")
def decoder(digit_images, vae_settings):
    return train_autoencoder(digit_images, None, vae_settings, seed=0)


def test_the_divergence_is_torchs():
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = (torch.randn(4, 3, generator=generator) for _ in range(2))
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(
        normal(mean, (log_variance / 2).exp()), normal(torch.zeros(3), torch.ones(3))
    ).sum(1)
    torch.testing.assert_close(divergence_from_normal(mean, log_variance), expected)


def test_draws_have_the_mean_of_the_public_images(decoder, digit_images):
    reference = digit_images.images.float().mean(0) / 255
    z = decoder.latents(600, torch.Generator().manual_seed(5))
    with torch.no_grad():
        mean = decoder(z).mean(0)
    error = float((mean - reference).abs().mean())
    assert error < 0.4 * float((0.5 - reference).abs().mean())


def test_the_code_carries_the_image(decoder):
    error, divergence = decoder.origin["losses"].values()
    assert error[-1] < 0.8 * error[0]
    assert divergence[-1] > 2  # nats; 0 would be a decoder that ignores its code


def test_there_is_no_critic_and_the_prior_is_that_of_the_latents(decoder):
    z = decoder.latents(5, torch.Generator().manual_seed(0))
    assert decoder.critic is None and decoder.apart is True
    torch.testing.assert_close(decoder.unnaturalness(z, decoder(z)), z.square().sum(1) / 12)


class Stopped(Exception):
    pass


def test_it_repeats_itself_and_goes_on_after_a_stop(
    digit_images, vae_settings, tmp_path, monkeypatch
):
    monkeypatch.setattr("bezoar.generators.curves._STEPS_TO_LOSE", 5)
    settings = msgspec.structs.replace(vae_settings, steps=12, flip=True)
    whole = train_autoencoder(digit_images, None, settings, seed=3)

    def stop(_what, share):
        if share > 0.6:
            raise Stopped

    options = {"seed": 3, "resume": tmp_path / "checkpoint"}
    with pytest.raises(Stopped):
        train_autoencoder(digit_images, None, settings, progress=stop, **options)
    resumed = train_autoencoder(digit_images, None, settings, **options)
    state = resumed.network.state_dict()
    assert all(torch.equal(v, state[n]) for n, v in whole.network.state_dict().items())
    assert list(tmp_path.iterdir()) == [options["resume"]], "it goes when the decoder is safe"


@pytest.mark.parametrize("settings", [{"steps": 0}, {"latent": 0}, {"learning_rate": -1.0}])
def test_settings_out_of_range_are_told(settings):
    with pytest.raises(InputError, match=f"{next(iter(settings))} is"):
        Autoencoding(**settings)
