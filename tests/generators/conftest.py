"""Digits as public images, and the settings of trainings that take seconds."""

import pytest
from public_digits import SMALL_GAN

from bezoar.demo import load_digits
from bezoar.generators import Autoencoding, train_generator


@pytest.fixture(scope="session")
def digit_images():
    return load_digits(seed=11)[0]


@pytest.fixture(scope="session")
def gan_settings():
    return SMALL_GAN


@pytest.fixture(scope="session")
def vae_settings():
    return Autoencoding(
        steps=120, batch_size=32, width=8, latent=12, learning_rate=5e-3, flip=False
    )


@pytest.fixture(scope="session")
def gan(digit_images, gan_settings):
    """Trained for a moment: its images have the digits' place, and nothing like a digit."""
    return train_generator(digit_images, None, gan_settings, seed=0)
