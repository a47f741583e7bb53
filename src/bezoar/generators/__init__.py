"""Generators that stand for natural images: learned from public images, or the user's own."""

from bezoar.generators.adversarial_training import AdversarialTraining, train_generator
from bezoar.generators.autoencoding import Autoencoding, train_autoencoder
from bezoar.generators.generator_files import load_generator, write_generator
from bezoar.generators.public_generator import PublicGenerator

__all__ = [
    "AdversarialTraining",
    "Autoencoding",
    "PublicGenerator",
    "load_generator",
    "train_autoencoder",
    "train_generator",
    "write_generator",
]
