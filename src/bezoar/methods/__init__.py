"""Methods that find and remove backdoors, one file each.

Nothing here may import ``bezoar.attacks`` or ``bezoar.evaluation``: a method decides from clean
images and from what it recovers itself.
"""

from bezoar.methods.anp import ANP
from bezoar.methods.bti_dbf import BtiDbf
from bezoar.methods.bti_dbf_p import BtiDbfP
from bezoar.methods.clp import CLP
from bezoar.methods.dhbe import DHBE
from bezoar.methods.fine_pruning import FinePruning
from bezoar.methods.fine_tuning import FineTuning
from bezoar.methods.fred import FreD
from bezoar.methods.fst import FST
from bezoar.methods.ft_sam import FTSAM
from bezoar.methods.i_bau import IBAU
from bezoar.methods.joint_unlearning import JointUnlearning
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
from bezoar.methods.mm_bd import MMBD
from bezoar.methods.nad import NAD
from bezoar.methods.neural_cleanse import NeuralCleanse
from bezoar.methods.npd import NPD
from bezoar.methods.plane_waves import PlaneWaves
from bezoar.methods.rnp import RNP
from bezoar.methods.sau import SAU
from bezoar.methods.smooth_pattern import SmoothPattern
from bezoar.methods.synthetic_unlearning import SyntheticUnlearning
from bezoar.methods.tac import TAC
from bezoar.methods.tsbd import TSBD
from bezoar.methods.weights import Weights

__all__ = [
    "ANP",
    "CLP",
    "DHBE",
    "FST",
    "FTSAM",
    "IBAU",
    "MMBD",
    "NAD",
    "NPD",
    "RNP",
    "SAU",
    "TAC",
    "TSBD",
    "BtiDbf",
    "BtiDbfP",
    "Evidence",
    "FinePruning",
    "FineTuning",
    "FreD",
    "JointUnlearning",
    "Method",
    "Needs",
    "NeuralCleanse",
    "PlaneWaves",
    "Repair",
    "SmoothPattern",
    "SyntheticUnlearning",
    "Weights",
    "is_data_free",
    "methods",
    "takes_no_task_image",
    "takes_public",
]
