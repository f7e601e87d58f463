"""CKA with dense MLPs: means over pairs of runs, and what is left out for each interval."""

import numpy as np
import pytest
import xarray as xr

from analyses.representation.dense_mlp import WithDense, dense_summary, with_dense
from analyses.statistics.minibatch_cka import batches, cka_of_all, gram_features, hsic_table
from analyses.statistics.runs import jackknife_runs

ARM = np.array(["dense"] * 3 + ["wide"] * 2 + ["switch"] * 3)
N_DENSE, N_UNITS = 5, 6


def _found(arm: np.ndarray, n_dense: int, *, seed: int = 0) -> WithDense:
    """Random values at two steps and layers, none of a run with itself."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0.5, 0.2, (2, 2, len(arm), n_dense))
    z[..., np.arange(n_dense), np.arange(n_dense)] = np.nan
    deleted = z[:, :, None] + rng.normal(0, 0.01, (2, 2, N_UNITS, len(arm), n_dense))
    return WithDense(z, deleted, np.tanh(z) / 10)


def _summary(found: WithDense, arm: np.ndarray) -> xr.Dataset:
    return dense_summary(found, xr.Dataset(coords={"arm": ("run", arm)}), level=0.95)


def _mean(z: np.ndarray, rows: list[int], columns: list[int]) -> float:
    """The mean over pairs of each dense arm, then over these, by a loop."""
    of_arms = []
    for name in ("dense", "wide"):
        pairs = [z[i, j] for i in rows for j in columns if ARM[j] == name and i != j]
        of_arms.append(np.mean(pairs))
    return float(np.mean(of_arms))


@pytest.mark.parametrize("arm", ["dense", "switch"])
def test_means_and_intervals_over_runs_are_those_of_a_loop(arm: str) -> None:
    found = _found(ARM, N_DENSE)
    at = _summary(found, ARM).isel(each_arm=list(dict.fromkeys(ARM)).index(arm), step=1, layer=0)
    z, rows = found.z[1, 0], np.flatnonzero(arm == ARM).tolist()
    every = list(range(N_DENSE))
    estimate = _mean(z, rows, every)
    assert float(at["arm_cka_dense"]) == pytest.approx(np.tanh(estimate))
    involved = sorted({*rows, *every})
    without = [_mean(z, [i for i in rows if i != run], [j for j in every if j != run])
               for run in involved]  # fmt: skip
    ci = jackknife_runs(np.array(estimate), np.array(without), ARM[involved]).ci
    np.testing.assert_allclose(at["arm_cka_dense_run_ci"], np.tanh(ci))
    low, high = at["arm_cka_dense_ci"].values
    assert low < float(at["arm_cka_dense"]) < high


def test_a_run_is_not_compared_with_itself_and_layers_are_averaged_on_the_inner_scale() -> None:
    found = _found(ARM, N_DENSE)
    result = _summary(found, ARM)
    own = [_mean(found.z[0, 1], [1], list(range(N_DENSE)))]
    np.testing.assert_allclose(result["run_cka_dense"][1, 0, 1], np.tanh(own[0]))
    both = np.arctanh(result["run_cka_dense"]).mean("layer")
    np.testing.assert_allclose(result["run_cka_dense_mean"], np.tanh(both))


def test_two_dense_seeds_are_one_pair_without_an_interval_over_runs() -> None:
    arm = np.array(["dense", "dense", "switch", "switch"])
    result = _summary(_found(arm, 2), arm)
    assert np.isfinite(result["arm_cka_dense"]).all()
    assert result["arm_cka_dense_run_ci"][0].isnull().all()
    assert result["arm_cka_dense_run_ci"][1].notnull().all()


def test_one_dense_run_or_none_leaves_what_it_must_unknown() -> None:
    one = _summary(_found(np.array(["dense", "switch"]), 1), np.array(["dense", "switch"]))
    assert one["arm_cka_dense"][0].isnull().all()
    assert one["arm_cka_dense"][1].notnull().all()
    none = _summary(_found(np.array(["switch"]), 0), np.array(["switch"]))
    assert none["arm_cka_dense"].isnull().all()
    assert none["cka_dense_chance"].isnull().all()


def test_values_are_cka_averaged_over_experts_and_vanish_when_units_are_exchanged() -> None:
    rng = np.random.default_rng(1)
    unit = np.repeat(np.arange(40), 10)
    dealt = {"batches": batches(unit, largest=250, rng=rng), "unit": unit}
    x = rng.standard_normal((3, len(unit), 8))
    x[1] += 2 * x[0]
    first, second, other = (gram_features(part, dealt["batches"]) for part in x)
    found = with_dense([first, second], {1: other, 2: first}, n_dense=3,
                       permutation=rng.permutation(40), **dealt)  # fmt: skip
    assert np.isnan(found.z[0])
    table = cka_of_all(hsic_table([first, second, other]).sum(axis=-1))
    assert found.z[1] == pytest.approx(np.arctanh(table[:2, 2]).mean())
    assert np.abs(found.chance[1:]).max() < 0.1
    assert table[0, 1] > 0.5
    np.testing.assert_allclose(found.deleted[:, 1].mean(), found.z[1], atol=0.02)
