"""Kinds of learning curves: clusters of their shapes, how common each is, and of what tokens."""

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.reporting.text import labels
from analyses.statistics.clusters import cluster_stability, curve_clusters
from analyses.statistics.learning import log_step
from analyses.statistics.resampling import jackknife, leave_one_out

FEWEST_OCCURRENCES = 20


def curve_kinds(
    shape: NDArray,
    token_unit: NDArray[np.intp],
    runs: xr.Dataset,
    *,
    steps: NDArray,
    n_pos: int,
    n_clusters: int,
    level: float,
    rng: np.random.Generator,
) -> xr.Dataset:
    """Clusters of the curves of all tokens and arms together.

    A token has one curve an arm, so that the clusters are the same for all arms and a token may be
    of one kind in one arm and of another in the next.

    Parameters
    ----------
    shape : (arm, point, token), smoothed curves averaged over the runs of an arm.
    token_unit : (token), integer labels from 0, tokens in reading order.
    runs : coordinates on `run`, in the order from which `shape` has its arms.
    steps : steps of the curves.
    n_pos : positions of a sequence.
    n_clusters : how many kinds.
    level : coverage of the intervals.
    rng : starts k-means and divides the text into halves.

    Returns
    -------
    Dataset
        `of_kind (each_arm, sequence, pos)`, numbered from 1, early falls first; `curve_share
        (each_arm, curve_kind)` of the tokens with `curve_share_ci` over units, the clusters held
        fixed; `curve_mean (each_arm, curve_kind, curve_step)`, mean loss in nats; `curve_stability
        (split)`, see `statistics.clusters.cluster_stability`. Empty if there are fewer than ten
        curves a cluster.
    """
    arms = list(dict.fromkeys(runs["arm"].values.astype(str)))
    n_arms, n_points, n_tokens = shape.shape
    if n_arms * n_tokens < 10 * n_clusters:
        return xr.Dataset()
    curves = shape.transpose(0, 2, 1).reshape(-1, n_points)
    found = curve_clusters(curves, n_clusters=n_clusters, rng=rng)
    stability = cluster_stability(
        curves, np.tile(token_unit, n_arms), n_clusters=n_clusters, rng=rng
    )
    label = found.label.reshape(n_arms, n_tokens)
    counts = np.zeros((int(token_unit.max()) + 1, n_arms, n_clusters))
    np.add.at(counts, (token_unit, np.arange(n_arms)[:, None], label), 1)
    share, deleted = (
        c / c.sum(axis=-1, keepdims=True) for c in (counts.sum(0), leave_one_out(counts))
    )
    member = label[:, None] == np.arange(n_clusters)[:, None]
    sums = np.einsum("act,apt->acp", member, shape)
    x = log_step(steps)
    dims: dict[str, Any] = {
        "each_arm": arms,
        "curve_kind": np.arange(1, n_clusters + 1),
        "curve_step": 2 ** np.linspace(x[0], x[-1], n_points) - 1,
    }
    of_clusters = ("each_arm", "curve_kind")
    return xr.Dataset(
        {
            "of_kind": (("each_arm", "sequence", "pos"), label.reshape(n_arms, -1, n_pos) + 1,
                        labels("kind of curve")),
            "curve_share": (of_clusters, share, labels("share of tokens")),
            "curve_share_ci": ((*of_clusters, "ci_bound"),
                                 jackknife(share, deleted, level=level).ci,
                                 labels("share of tokens, interval over units of text")),
            "curve_mean": ((*of_clusters, "curve_step"),
                              sums / np.maximum(member.sum(axis=-1), 1)[..., None],
                              labels("mean smoothed loss", "nat")),
            "curve_stability": ("split", stability,
                                  labels("adjusted Rand index of the clusters of two halves")),
        },
        dims | {"ci_bound": ["lower", "upper"]},
    )  # fmt: skip


def typical_ids(
    result: xr.Dataset, probe_set: xr.Dataset, *, n_shown: int = 8
) -> dict[int, list[tuple[str, float]]]:
    """Token ids that are most often of each kind: their text, and the share of them that is.

    Parameters
    ----------
    result : with `of_kind (each_arm, sequence, pos)`.
    probe_set : Dataset with `target (sequence, pos)`, and if known `vocabulary (d_vocab)`.
    n_shown : ids a kind, of those that occur at least 20 times in the probe set.

    Returns
    -------
    dict
        By number of the kind, (text in quotes, share), largest share first; the id in place of its
        text where the vocabulary is not known.
    """
    target = probe_set["target"].transpose("sequence", "pos").values
    ids, index, n = np.unique(target, return_inverse=True, return_counts=True)
    known = "vocabulary" in probe_set
    text = (probe_set["vocabulary"].values.astype(object)[ids] if known else ids).tolist()
    frequent = np.flatnonzero(n >= FEWEST_OCCURRENCES)
    found = {}
    for number in result["curve_kind"].values.tolist():
        member = (result["of_kind"] == number).mean("each_arm").transpose("sequence", "pos")
        share = np.bincount(index.ravel(), member.values.ravel(), minlength=len(ids)) / n
        top = frequent[np.argsort(-share[frequent], kind="stable")][:n_shown]
        found[number] = [(repr(text[i]), float(share[i])) for i in top]
    return found
