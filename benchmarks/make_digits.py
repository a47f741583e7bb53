"""Writes ``src/bezoar/data/digits.npz`` from scikit-learn's copy of the UCI digits (CC BY 4.0)."""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

digits = load_digits()
images = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]
target = Path(__file__).parents[1] / "src" / "bezoar" / "data" / "digits.npz"
np.savez_compressed(target, images=images, labels=digits.target.astype(np.int64))
