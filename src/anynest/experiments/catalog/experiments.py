"""Every table and figure by name."""

from ...training import ConfigError
from ...training.errors import near_matches
from .ablations import ABLATIONS
from .experiment import Experiment
from .fig8 import FIG8
from .fig9 import FIG9
from .fig10 import FIG10
from .table1 import TABLE1
from .table2 import TABLE2
from .table3 import TABLE3
from .tuned import TUNED

EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (TABLE1, TABLE2, TABLE3, FIG8, FIG9, FIG10, ABLATIONS, TUNED)
}
ALL = "all"


def find_experiments(name: str) -> list[Experiment]:
    """One by name, or all of them; ConfigError lists those there are."""
    if name == ALL:
        return list(EXPERIMENTS.values())
    if name not in EXPERIMENTS:
        known = [*EXPERIMENTS, ALL]
        raise ConfigError(f"there is no table or figure {name!r}{near_matches(name, known)}")
    return [EXPERIMENTS[name]]
