"""Figure 10: error at seven deadlines and at none; the networks are Figure 9's."""

from . import fig9
from .experiment import Experiment

FIG10 = Experiment(
    "fig10",
    "Error at seven deadlines and at none, with measured latencies",
    "Figure 10",
    "cifar",
    fig9.runs,
    measured=True,
)
