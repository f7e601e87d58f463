"""Which arms are held against each other, and what difference noise of seeds makes by itself."""

from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.unanswerable import Unanswerable

KINDS = ("MoE and dense", "dense and dense", "same arm", "MoE and MoE")


class ArmPair(NamedTuple):
    """Two groups of runs; what is compared is the mean of `first` less the mean of `second`.

    Attributes
    ----------
    name : "switch - dense", with a minus sign.
    kind : of `KINDS`.
    arm_a, arm_b : arm of the first and of the second group.
    first, second : indices of their runs.
    """

    name: str
    kind: str
    arm_a: str
    arm_b: str
    first: NDArray[np.intp]
    second: NDArray[np.intp]

    @property
    def enough(self) -> bool:
        """Whether each group has two runs, so that noise of seeds can be told."""
        return min(len(self.first), len(self.second)) >= 2


def arm_pairs(runs: xr.Dataset) -> list[ArmPair]:
    """Every two arms, the later less the earlier, by kind; and two halves of the seeds of one arm.

    Nothing but noise of seeds sets the halves apart. They are of the first arm that has the most
    runs, if it has two or more: every second run less the others.

    Parameters
    ----------
    runs : with `run`, `arm` and `architecture` (run), sorted by `sorted_by_arm`.

    Raises
    ------
    Unanswerable
        If all runs are of one arm.
    """
    arm = runs["arm"].values.astype(str)
    is_moe = dict(zip(arm, runs["architecture"].values != "dense", strict=True))
    if len(is_moe) < 2:
        raise Unanswerable(
            f"this compares arms, and all {len(arm)} runs are of arm {str(arm[0])!r}; give runs of "
            "at least two arms"
        )
    arms, members = list(is_moe), {name: np.flatnonzero(arm == name) for name in is_moe}
    pairs = [
        ArmPair(
            f"{a} \N{MINUS SIGN} {b}", _kind(is_moe[a], is_moe[b]), a, b, members[a], members[b]
        )
        for i, b in enumerate(arms)
        for a in arms[i + 1 :]
    ]
    most = max(arms, key=lambda name: len(members[name]))
    if len(own := members[most]) >= 2:
        name = f"{most} \N{MINUS SIGN} {most}, other seeds"
        pairs.append(ArmPair(name, "same arm", most, most, own[1::2], own[::2]))
    # of each kind, pairs with the arm that comes first, then the others
    return sorted(pairs, key=lambda pair: (KINDS.index(pair.kind), arms.index(pair.arm_b)))


def _kind(is_moe: bool, other_is_moe: bool) -> str:
    if is_moe != other_is_moe:
        return "MoE and dense"
    return "MoE and MoE" if is_moe else "dense and dense"
