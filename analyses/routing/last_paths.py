"""What is shown of the last step: transitions between experts, and paths through all layers."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.reporting.text import labels
from analyses.statistics.information import contingency, entropy, miller_madow
from analyses.statistics.resampling import jackknife
from analyses.statistics.top_paths import matched_order, top_paths

N_TOP = 8


def _joint(earlier: NDArray, later: NDArray, n_experts: int) -> NDArray[np.int64]:
    shape = (n_experts, n_experts)
    return contingency(earlier[:, :, None], later[:, None, :], shape=shape)


def transitions(
    earlier: NDArray, later: NDArray, here: NDArray[np.bool_], *, n_experts: int
) -> dict[str, NDArray]:
    """P(next expert | expert) on one half of the text, with experts in an order from the other.

    Parameters
    ----------
    earlier, later : (token, top_k), expert indices in two layers.
    here : (token), those that the order is made from.
    n_experts : N.
    """
    rows, columns = matched_order(_joint(earlier[here], later[here], n_experts))
    joint = _joint(earlier[~here], later[~here], n_experts).astype(np.float64)
    sums = joint.sum(axis=1, keepdims=True)
    given = np.divide(joint, sums, out=np.full_like(joint, np.nan), where=sums > 0)
    return {
        "transition": given[rows][:, columns],
        "next_load": joint.sum(axis=0)[columns] / joint.sum(),
        "from_expert": rows,
        "to_expert": columns,
    }


def whole_paths(
    choices: list[NDArray],
    unit: NDArray[np.intp],
    first_half: NDArray[np.bool_],
    *,
    n_experts: int,
) -> dict[str, NDArray]:
    """Share that every layer settles of every later one, and the commonest paths through all.

    Parameters
    ----------
    choices : of each layer, (token, top_k).
    unit : (token), integer labels from 0.
    first_half : (unit), on which paths are picked.
    n_experts : N.
    """
    n_layers, top_k = len(choices), choices[0].shape[1]
    between = np.full((n_layers, n_layers), np.nan)
    for i, j in zip(*np.triu_indices(n_layers, 1), strict=True):
        joint = _joint(choices[i], choices[j], n_experts)
        limit = float(entropy(joint.sum(axis=0))) - np.log(top_k)
        between[i, j] = miller_madow(joint) / limit if limit > 1e-9 else np.nan
    first = np.stack([choice[:, 0] for choice in choices])
    top = top_paths(first, unit, first_half, n_experts=n_experts, n_top=N_TOP)
    return {"between": between} | {f"path_{name}": value for name, value in top._asdict().items()}


def last_paths(found: list[dict[str, NDArray]], layer: NDArray, *, level: float) -> xr.Dataset:
    """What `transitions` and `whole_paths` found in each run, with its labels."""

    def stacked(name: str) -> NDArray:
        return np.stack([of_run[name] for of_run in found])

    def with_interval() -> Iterator[tuple[str, Any]]:
        for name, title in (("share", "share of tokens on the path"),
                            ("independent", "the same if layers were independent")):  # fmt: skip
            value = stacked(f"path_{name}")
            # (run, unit, rank): the jackknife wants units first
            without = stacked(f"path_{name}_deleted").swapaxes(0, 1)
            ci = np.clip(jackknife(value, without, level=level).ci, 0.0, 1.0)
            yield f"path_{name}", (("run", "rank"), value, labels(title))
            yield f"path_{name}_ci", (("run", "rank", "ci_bound"), ci, labels(title))

    places = ("run", "layer", "from_rank", "to_rank")
    variables: dict[str, Any] = {
        "transition": (places, stacked("transition"), labels("P(next expert | expert)")),
        "next_load": (("run", "layer", "to_rank"), stacked("next_load"), labels("P(next expert)")),
        "from_expert": (places[:3], stacked("from_expert"), labels("expert")),
        "to_expert": (("run", "layer", "to_rank"), stacked("to_expert"), labels("next expert")),
        "between": (
            ("run", "moe_layer", "later_layer"), stacked("between"),
            labels("share of the later layer's choice that is settled, Miller-Madow"),
        ),
        "path": (("run", "rank", "moe_layer"), stacked("path_path"), labels("expert")),
        "path_chosen": (("run", "rank"), stacked("path_chosen"), labels("share where picked")),
    }  # fmt: skip
    return xr.Dataset(variables | dict(with_interval()), {"later_layer": layer})
