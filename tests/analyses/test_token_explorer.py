import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from analyses import token_explorer as analysis
from analyses.comparison.runs import sorted_by_arm
from analyses.comparison.unanswerable import Unanswerable
from analyses.comparison.units import unit_labels
from analyses.reporting import cli
from analyses.reporting.explorer import contents as module
from analyses.reporting.explorer.contents import Contents, contents
from analyses.reporting.explorer.files import explorer_files
from analyses.reporting.explorer.packing import (
    as_script,
    coded,
    packed,
    quantised,
    restored,
    unpacked,
)
from store.study import Study

PAIR = "switch \N{MINUS SIGN} dense"
HOSTILE = "</script><script>alert(1)</script><!-- & \u2028 \ud7ff é"


@pytest.mark.parametrize("size", [0, 1, 7, 40_000])
def test_packed_numbers_come_back(size: int) -> None:
    numbers = np.random.default_rng(0).integers(0, 65_536, size).astype(np.uint16)
    text = packed(numbers)
    assert "<" not in text
    np.testing.assert_array_equal(unpacked(text), numbers)


def test_losses_are_off_by_no_more_than_half_a_step() -> None:
    losses = np.random.default_rng(0).gamma(2.0, 2.0, 100_000)
    error = np.abs(restored(quantised(losses)) - losses)
    assert 0.9 / 512 < error.max() <= 1 / 512


def test_what_was_not_observed_stays_missing_and_what_is_too_large_is_the_largest() -> None:
    values = np.array([np.nan, np.inf, 0.0, 1e6])
    np.testing.assert_array_equal(restored(quantised(values)), [np.nan, np.nan, 0, 65_534 / 256])
    np.testing.assert_array_equal(coded(np.array([-1, 0, 255])), [65_535, 0, 255])


def test_too_many_experts_are_refused_with_the_limit() -> None:
    with pytest.raises(ValueError, match="65,535"):
        coded(np.array([65_535]))


def test_text_in_a_script_is_neutral_and_comes_back() -> None:
    text = as_script({HOSTILE: [HOSTILE]})
    assert not set("<>&") & set(text)
    assert text.isascii()
    assert json.loads(text) == {HOSTILE: [HOSTILE]}


class _Scripts(HTMLParser):
    """Contents of the script elements, as HTML sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script":
            self.scripts.append(data)


@pytest.fixture(scope="module")
def made() -> dict:
    """Two runs, three documents whose sequences are interleaved, top-2 experts, a gap."""
    rng = np.random.default_rng(0)
    token = rng.integers(0, 5, (6, 5))
    loss = rng.gamma(2.0, 2.0, (2, 3, 6, 4)).astype("float32")
    loss[1, 0] = np.nan
    dims, names = ("sequence", "pos"), np.array(["b", "a", "b", HOSTILE, "a", "b"], dtype=object)
    return {
        "loss": xr.DataArray(
            loss,
            dims=("run", "step", *dims),
            coords={"run": ["x", "y"], "step": [0, 1, 9], "arm": ("run", ["dense", "switch"])},
        ),
        "expert_index": xr.DataArray(
            rng.integers(0, 256, (1, 3, 2, 6, 4, 2)),
            dims=("run", "step", "layer", *dims, "top_k"),
            coords={"run": ["y"], "layer": [1, 3]},
        ),
        "probe_set": xr.Dataset(
            {
                "token": (dims, token[:, :-1]),
                "target": (dims, token[:, 1:]),
                "vocabulary": ("d_vocab", np.array(["a", HOSTILE, "\n", " the", "<b>"], object)),
                "ngram_surprisal": (("order", *dims), rng.gamma(2.0, 2.0, (3, 6, 4))),
                **dict.fromkeys(("document", "work", "domain"), ("sequence", names)),
            },
            {"order": [1, 2, 3]},
        ),
    }


def _contents(made: dict, **changed: xr.Dataset | None) -> Contents:
    given = made | changed
    return contents(
        given["loss"], given["expert_index"], given["probe_set"],
        study=HOSTILE, n_experts=256, document_mean=np.zeros((2, 3, 3)), loss_scale=8.0,
    )  # fmt: skip


def test_documents_hold_their_own_tokens(made: dict) -> None:
    found = _contents(made)
    assert [d["name"] for d in found.outline["documents"]] == ["b", "a", HOSTILE]
    for part, places in zip(found.parts(), ([0, 2, 5], [1, 4], [3]), strict=True):
        losses = restored(unpacked(part["loss"])).reshape(2, 3, len(places), 4)
        np.testing.assert_allclose(losses, made["loss"][:, :, places], atol=1 / 512)
        experts = unpacked(part["expert"]).reshape(1, 3, 2, len(places), 4, 2)
        np.testing.assert_array_equal(experts, made["expert_index"][:, :, :, places])
        ids = np.array(found.outline["tokenIds"])[unpacked(part["token"])].reshape(-1, 5)
        np.testing.assert_array_equal(ids[:, :-1], made["probe_set"]["token"][places])
        np.testing.assert_array_equal(ids[:, 1:], made["probe_set"]["target"][places])
        surprisal = restored(unpacked(part["surprisal"])).reshape(3, len(places), 4)
        known = made["probe_set"]["ngram_surprisal"][:, places]
        np.testing.assert_allclose(surprisal, known, atol=1 / 512)


def test_reading_in_blocks_changes_nothing(made: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(_contents(made).parts())
    monkeypatch.setattr(module, "_BLOCK", 200)
    assert list(_contents(made).parts()) == whole


def test_corpus_text_in_the_page_is_data(made: dict) -> None:
    (_, page), *others = explorer_files(_contents(made))
    assert not others
    text = page.decode("utf-8")
    read = _Scripts()
    read.feed(text)
    # the loader, the index, three documents, the code
    assert read.tags.count("script") == 6
    index = next(json.loads(s) for s in read.scripts if s.startswith('{"study"'))
    assert index["study"] == HOSTILE
    assert HOSTILE in index["tokenTexts"]
    assert "<script>alert" not in text


def test_documents_of_a_large_study_stand_beside_the_page(made: dict) -> None:
    files = dict(explorer_files(_contents(made), embedded=100))
    names = [f"documents/{i:05d}.js" for i in range(3)]
    assert list(files) == [*names, "explorer.html"]
    assert b"tokenExplorer.register(1," not in files["explorer.html"]
    payload = json.loads(files[names[1]].decode().split("(1,", 1)[1].rstrip().removesuffix(");"))
    assert payload == list(_contents(made).parts())[1]


def test_page_asks_nothing_of_the_network(made: dict) -> None:
    (_, page), *_ = explorer_files(_contents(made))
    text = page.decode("utf-8")
    assert "default-src 'none'" in text
    assert "https://" not in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")


def test_targets_that_do_not_follow_are_refused(made: dict) -> None:
    other = made["probe_set"].assign(target=made["probe_set"]["target"] + 1)
    with pytest.raises(Unanswerable, match="next token"):
        _contents(made, probe_set=other)


def test_share_beyond_noise_is_that_of_scipys_test(study_folder: Path) -> None:
    study = Study.open(study_folder)
    loss = sorted_by_arm(study.dataset("losses")["loss"].load())
    probe_set = study.probe_set.load()
    result = analysis.token_explorer(loss, probe_set, unit_labels(probe_set, "work"))
    assert result["arm_pair"].values.tolist() == [PAIR]
    for step in loss["step"].values:
        at = loss.sel(step=step)
        switch, dense = (at[(at["arm"] == arm).values].values for arm in ("switch", "dense"))
        test = stats.ttest_ind(switch, dense, equal_var=False)
        found = result.sel(step=step, arm_pair=PAIR)
        assert float(found["beyond_share"]) == pytest.approx((test.pvalue < 0.05).mean(), abs=0.003)
        low, high = found["beyond_share_ci"].values
        assert low < found["beyond_share"] < high
        assert float(found["difference"]) == pytest.approx(switch.mean() - dense.mean(), abs=1e-5)
    document = loss.groupby(probe_set["document"]).mean(["sequence", "pos"])
    np.testing.assert_allclose(
        result["document_mean"].sel(document=document["document"].values),
        document.transpose("run", "step", "document"),
        rtol=1e-5,
    )


def test_step_that_not_all_runs_observed_is_no_comparison(study_folder: Path) -> None:
    study = Study.open(study_folder)
    loss = sorted_by_arm(study.dataset("losses")["loss"].load()).copy()
    loss[{"run": 0, "step": 2}] = np.nan
    probe_set = study.probe_set.load()
    result = analysis.token_explorer(loss, probe_set, unit_labels(probe_set, "work"))
    assert result["beyond_share"].isnull().values[:, 0].tolist() == [False, False, True]


def test_report_links_to_the_page_and_is_made_the_same_again(
    study_folder: Path, tmp_path: Path, capsys
) -> None:
    for name in ("one", "two"):
        assert analysis.main([str(study_folder), "--report", str(tmp_path / name)]) == 0
    one, two = (tmp_path / name / "token_explorer" for name in ("one", "two"))
    assert "[explorer.html](explorer.html)" in (one / "index.md").read_text(encoding="utf-8")
    assert (one / "explorer.html").read_bytes() == (two / "explorer.html").read_bytes()
    assert PAIR in capsys.readouterr().out


def test_runs_of_one_arm_can_be_read_without_a_claim(
    write_study: Callable[..., Path], tmp_path: Path, capsys
) -> None:
    study = write_study(tmp_path / "alike", {"dense-seed0": "dense", "dense-seed1": "dense"})
    assert analysis.main([str(study), "--report", str(tmp_path)]) == 0
    assert "No two arms have two runs each" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "token_explorer" / "explorer.html").is_file()


def test_one_run_is_refused(study_folder: Path, tmp_path: Path, capsys) -> None:
    run = str(study_folder / "dense-seed0.zarr")
    assert analysis.main([run, "--report", str(tmp_path)]) == cli.UNANSWERABLE
    assert "at least 2" in capsys.readouterr().err
