"""A stand-in for a method that needs nothing: it moves the weights and says what it saw."""

from typing import ClassVar

import torch

from bezoar.methods import Method, Repair
from bezoar.methods.method import Needs
from bezoar.metrics import rate

MEASURED = {
    "agreement": {"synthetic": rate(1958, 2000).as_record()},
    "insensitivity": {
        "before": rate(1602, 2000).as_record(),
        "after": rate(24, 2000).as_record(),
    },
}


class Shake(Method, frozen=True, kw_only=True):
    """Multiplies all weights by random numbers near 1, and takes no image."""

    name: ClassVar[str] = "shake"
    title: ClassVar[str] = "Shaking the weights"
    paper: ClassVar[str] = "none"
    needs: ClassVar[Needs] = "nothing"
    given: ClassVar[list] = []

    size: float = 0.01
    measures: bool = True
    refuses: str = ""

    def remove(self, classifier, clean=None, *, seed=0, progress=None):
        self.given.append(clean)
        repaired = classifier.copy()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in repaired.network.parameters():
                noise = torch.randn(weight.shape, generator=generator)
                weight.mul_(1 + self.size * noise)
        record = dict(MEASURED) if self.measures else {}
        return Repair(repaired, record | ({"refused": self.refuses} if self.refuses else {}))
