"""Methods that find and remove backdoors, one file each.

Nothing here may import ``bezoar.attacks`` or ``bezoar.evaluation``: a method decides from clean
images and from what it recovers itself.
"""

from bezoar.methods.bti_dbf import BtiDbf
from bezoar.methods.bti_dbf_p import BtiDbfP
from bezoar.methods.dhbe import DHBE
from bezoar.methods.fine_tuning import FineTuning
from bezoar.methods.fred import FreD
from bezoar.methods.i_bau import IBAU
from bezoar.methods.method import (
    Evidence,
    Method,
    Needs,
    Repair,
    is_data_free,
    methods,
    takes_no_task_image,
    takes_public,
)
from bezoar.methods.neural_cleanse import NeuralCleanse
from bezoar.methods.rnp import RNP
from bezoar.methods.tac import TAC

__all__ = [
    "DHBE",
    "IBAU",
    "RNP",
    "TAC",
    "BtiDbf",
    "BtiDbfP",
    "Evidence",
    "FineTuning",
    "FreD",
    "Method",
    "Needs",
    "NeuralCleanse",
    "Repair",
    "is_data_free",
    "methods",
    "takes_no_task_image",
    "takes_public",
]
