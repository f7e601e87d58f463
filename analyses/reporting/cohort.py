"""What a study's runs allow to be said: which of them can be compared, and how far it carries."""

from collections.abc import Iterable

import numpy as np

from analyses.reporting.text import listed

ENOUGH_SEEDS = 3


def runs_sentence(arms: Iterable[str]) -> str:
    """How many runs each arm has, and whether that allows a claim about arms.

    Parameters
    ----------
    arms : arm of each run.
    """
    names, counts = np.unique(list(arms), return_counts=True)
    runs = listed(f"{n} of {arm}" for arm, n in zip(names, counts, strict=True))
    few = names[counts < ENOUGH_SEEDS]
    if not len(few):
        return f"Runs: {runs}."
    return (
        f"Runs: {runs}. With fewer than {ENOUGH_SEEDS} seeds of {listed(few)}, this describes "
        "these models and allows no claim about arms."
    )
