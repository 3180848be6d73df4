"""The registry of experiments."""

from ...training import ConfigError
from ...training.errors import near_matches
from .ablations import ABLATIONS
from .experiment import Experiment
from .fig8 import FIG8
from .fig9 import FIG9
from .fig10 import FIG10
from .tables import TABLE1, TABLE2, TABLE3
from .tuned import TUNED, TUNED_DESIGNS

EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        *(TABLE1, TABLE2, TABLE3, FIG8, FIG9, FIG10),
        *(ABLATIONS, TUNED, TUNED_DESIGNS),
    )
}
ALL = "all"


def find_experiments(name: str) -> list[Experiment]:
    """The experiment of a name, or all of them for ``all``.

    Raises:
        ConfigError: For an unknown name; lists the near matches.
    """
    if name == ALL:
        return list(EXPERIMENTS.values())
    if name not in EXPERIMENTS:
        names = [*EXPERIMENTS, ALL]
        raise ConfigError(f"there is no table or figure {name!r}{near_matches(name, names)}")
    return [EXPERIMENTS[name]]
