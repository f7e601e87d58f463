import numpy as np
import xarray as xr

from analyses.reporting.cohort import runs_sentence, stream_sentence, works_sentence


def stream(*hashes: list[int]) -> xr.DataArray:
    runs = [f"run{i}" for i in range(len(hashes))]
    steps = np.arange(1, 1 + len(hashes[0]))
    values = np.array(hashes, dtype="uint64")
    return xr.DataArray(values, {"run": runs, "step": steps}, ("run", "step"))


def test_runs_saw_the_same_stream_if_their_hashes_agree_at_the_last_common_step():
    same, sentence = stream_sentence(stream([5, 6, 7, 0], [5, 6, 7, 8]))
    assert same
    assert "Up to step 3" in sentence


def test_runs_with_other_batches_are_named():
    same, sentence = stream_sentence(stream([5, 6], [5, 6], [5, 9]))
    assert not same
    assert "run2 differ from those of run0" in sentence


def test_without_a_common_step_nothing_is_proved():
    assert stream_sentence(stream([5, 0], [0, 6])) == (
        False,
        "Nothing proves that the runs saw the same tokens in the same order. They have no "
        "training step in common.",
    )


def probe_set(work: list[str]) -> xr.Dataset:
    columns = {"document": list("abcd"), "work": work, "domain": ["x", "x", "y", "y"]}
    return xr.Dataset({name: ("sequence", values) for name, values in columns.items()})


def test_passages_of_one_work_are_pointed_out():
    sentence = works_sentence(probe_set(["one", "one", "two", "three"]))
    assert sentence is not None
    assert "4 documents come from 3 works" in sentence
    assert "x has 1" in sentence


def test_whole_works_need_no_warning():
    assert works_sentence(probe_set(list("abcd"))) is None


def test_three_seeds_of_each_arm_are_enough_to_compare_arms():
    assert "no claim" in runs_sentence(["dense"] * 3 + ["switch"] * 2)
    assert "no claim" not in runs_sentence(["dense"] * 3 + ["switch"] * 3)
