"""The claims of the reference study about the arms of one study, and what was found of each."""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.claims.evidence import Evidence
from analyses.comparison.claims.hypotheses import (
    OTHER,
    Claim,
    claim_of_height,
    claims_about_dense,
    claims_about_moe,
)
from analyses.comparison.claims.stages import Stages, stages
from analyses.comparison.unanswerable import Unanswerable
from analyses.reporting import pairs
from analyses.reporting.text import labels, listed
from analyses.statistics.pairs import pair_indices

_SCALES = {"z": "z", "r2": "r²", "delta": "rho2 \N{MINUS SIGN} 1"}


def study_claims(
    similarity: xr.Dataset, z: NDArray[np.float64], *, unigram: float | None
) -> list[Claim]:
    """All claims about the arms of a study, at the places of its own training.

    Parameters
    ----------
    similarity : with `loss_mean (run, step)`, along `step` or `loss_level`.
    z : (place, run, run)
    unigram : mean loss of a unigram model, nats, if known.

    Raises
    ------
    Unanswerable
        Without a dense and an MoE run.
    ValueError
        If runs compared have no place in common.
    """
    dim = pairs.place_dim(similarity)
    arm = similarity["arm"].values.astype(str)
    is_moe = dict(zip(arm, similarity["architecture"].values != "dense", strict=True))
    widths, moes = ([name for name in is_moe if is_moe[name] == moe] for moe in (False, True))
    if not widths or not moes:
        raise Unanswerable(
            f"the claims compare MoE with dense, and all runs are of {listed(is_moe)}; give a "
            "study with runs of both"
        )
    # "dense" where a study has it, else the dense arm with the most runs
    dense = max(widths, key=lambda name: (name == "dense", (arm == name).sum()))
    where = [pairs.place_text(similarity.isel({dim: i})) for i in range(similarity.sizes[dim])]
    places = similarity[dim].values.astype(float)
    x = np.log2(np.maximum(places, 1.0)) if dim == "step" else -places

    def stages_of(*arms: str) -> Stages:
        own = np.flatnonzero(np.isin(arm, arms))
        first, second = pair_indices(len(own))
        of_pairs = z[:, own[first], own[second]]
        loss_mean = similarity["loss_mean"].transpose("step", "run").values[:, own]
        return stages(
            np.asarray(np.isfinite(of_pairs).all(axis=1)), loss_mean, similarity["step"].values,
            levels=None if dim == "step" else places, unigram=unigram,
        )  # fmt: skip

    claims = claims_about_dense((dense, dense), stages_of(dense), where, family=dense)
    for moe in moes:
        claims += claims_about_moe(dense, moe, stages_of(dense, moe), where, x=x)
    # the reference study compared dense models of two widths
    for pair in ((dense, other) for other in widths if other != dense):
        claims += claims_about_dense(pair, stages_of(*pair), where, family=OTHER)
        for moe in moes:
            at = stages_of(*pair, moe)
            claims.append(claim_of_height(pair, (dense, moe), at, where, family=OTHER))
    return claims


def claim_dataset(claims: list[Claim], found: list[Evidence], similarity: xr.Dataset) -> xr.Dataset:
    """What was found of each claim, along `hypothesis`, on the scales of the report."""
    place = similarity[pairs.place_dim(similarity)].values
    arm = similarity["arm"].values.astype(str)

    def scaled(values: list) -> NDArray[np.float64]:
        rows = zip(values, claims, strict=True)
        return np.array(
            [np.expm1(2 * v) if c.scale == "delta" else v for v, c in rows], dtype=float
        )

    def label_of(index: int | None) -> float:
        return np.nan if index is None else float(place[index])

    by = "hypothesis"
    lowest = [
        None if of.lowest is None else int(claim.stages.between[of.lowest])
        for of, claim in zip(found, claims, strict=True)
    ]
    coords = {
        "hypothesis": [claim.text for claim in claims],
        "looked_at": (by, [claim.looked_at for claim in claims]),
        "family": (by, [claim.family for claim in claims]),
        "test": (by, [claim.test for claim in claims]),
        "scale": (by, [_SCALES[claim.scale] for claim in claims]),
        "claim_arms": (by, [", ".join(claim.arms) for claim in claims]),
        "n_runs": (by, [" + ".join(str((arm == a).sum()) for a in c.arms) for c in claims]),
        "early": (by, [label_of(claim.stages.early) for claim in claims]),
        "lowest": (by, [label_of(index) for index in lowest]),
        "end": (by, [label_of(claim.stages.end) for claim in claims]),
        "unit": similarity["unit"],
        "n_tokens": similarity["n_tokens"],
        "ci_bound": ["lower", "upper"],
    }
    estimate = labels("estimate of the weakest part")
    result = xr.Dataset(
        {
            "estimate": (by, scaled([of.estimate for of in found]), estimate),
            "ci": ((by, "ci_bound"), scaled([of.ci for of in found]), labels("over units of text")),
            "run_ci": ((by, "ci_bound"), scaled([of.run_ci for of in found]), labels("over runs")),
            "low": (by, scaled([claim.low for claim in claims]), labels("lowest that is claimed")),
            "high": (by, scaled([claim.high for claim in claims]), labels("highest claimed")),
            "favours": (by, [of.favours for of in found], labels("whether estimated as claimed")),
            "estimate_deleted": ((by, "unit"), scaled([of.deleted for of in found])),
        },
        coords,
        {"level": similarity.attrs["level"], "match": similarity.attrs["match"]},
    )  # fmt: skip
    for name in ("p", "smallest_p", "run_p", "run_smallest_p"):
        over = "runs" if name.startswith("run") else "units of text"
        what = "smallest p that could come out" if "smallest" in name else "p"
        values = [getattr(of, name) for of in found]
        result[name] = by, values, labels(f"{what}, over {over}")
    return result.transpose("unit", ...)
