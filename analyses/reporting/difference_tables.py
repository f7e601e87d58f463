"""Tables of `loss_differences`: pairs of arms, classes of tokens, and token ids in their text."""

from collections.abc import Iterator, Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.reporting.report import Table
from analyses.reporting.text import interval, number, p_value

_VISIBLE = str.maketrans({" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"})
_BEFORE, _AFTER = 14, 7


def visible(text: str) -> str:
    """The text of a token with its white space as signs."""
    return text.translate(_VISIBLE)


def token_texts(ids: NDArray, probe_set: xr.Dataset) -> NDArray[np.str_]:
    """What stands for token ids: their text, with the id where that tells too little.

    Parameters
    ----------
    ids : token ids.
    probe_set : Dataset, if known with `vocabulary (d_vocab)`.
    """
    if "vocabulary" not in probe_set:
        return np.array([f"id {i}" for i in ids], dtype=str)
    texts = probe_set["vocabulary"].values.astype(object).astype(str)[ids]
    shown = [
        f"{visible(text)} (id {i})"
        if not text or not text.isprintable() or "\ufffd" in text
        else visible(text)
        for i, text in zip(ids, texts, strict=True)
    ]
    return np.array(shown, dtype=str)


def tables(
    at: xr.Dataset, shown: Sequence[str], probe_set: xr.Dataset, *, rate: float
) -> Iterator[Table]:
    """Every table of the report.

    Parameters
    ----------
    at : the result at its last place.
    shown : names of the pairs whose classes are listed.
    probe_set : Dataset, as for `token_classes`.
    rate : false discovery rate.
    """
    yield _pairs(at, rate)
    for name in shown:
        yield _classes(at.sel(arm_pair=name))
    if "choice" not in at.dims:
        return
    yield _kept(at)
    for name in at["choice"].values:
        pair = at.sel(arm_pair=name)
        if name in shown and pair["pair_kind"] == "MoE and dense":
            yield _ids(at.sel(choice=name), pair, probe_set)


def _pairs(at: xr.Dataset, rate: float) -> Table:
    unit = at["unit"].attrs["long_name"]
    rows = []
    for name in at["arm_pair"].values:
        pair = at.sel(arm_pair=name)
        overall, classes = pair.isel(token_class=-1), pair.isel(token_class=slice(None, -1))
        tested = int(classes["p"].notnull().sum())
        rows.append(
            (
                str(name),
                f"{int(pair['n_runs_a'])} and {int(pair['n_runs_b'])}",
                number(overall["difference"]),
                interval(*overall["difference_ci"].values),
                interval(*overall["difference_run_ci"].values),
                f"{int((classes['p_adjusted'] <= rate).sum())} of {tested}"
                if tested
                else "\N{EN DASH}",
                number(pair["smallest_p"]),
            )
        )
    head = ("arms", "runs", "over all tokens (nat)", f"95% over {unit}s", "95% over runs",
            f"classes that differ (FDR {rate:.0%})", "smallest p of exchange")  # fmt: skip
    return Table("Pairs of arms", head, tuple(rows))


def _classes(pair: xr.Dataset) -> Table:
    unit = pair["unit"].attrs["long_name"]
    rows = []
    for i in range(pair.sizes["token_class"] - 1):
        at = pair.isel(token_class=i)
        g = f"{number(at['g'], digits=1)} ({interval(*at['g_ci'].values, digits=1)})"
        rows.append(
            (
                str(at["token_class"].item()),
                f"{int(at['n_tokens']):,} in {int(at['n_units'])}",
                number(at["difference"]),
                number(at["relative"]),
                interval(*at["relative_ci"].values),
                interval(*at["relative_run_ci"].values),
                number(at["relative_dof"], digits=1),
                g if np.isfinite(at["g"]) else "\N{EN DASH}",
                number(at["d"]),
                p_value(float(at["p"]), smallest=0.0),
                p_value(float(at["p_adjusted"]), smallest=0.0),
                p_value(float(at["p_label"]), smallest=float(at["smallest_p"])),
            )
        )
    head = (
        "class", f"tokens in {unit}s", "difference (nat)", "relative (nat)", f"95% over {unit}s",
        "95% over runs", "dof", "g (95%)", "d", "p", "p (FDR)", "p (exchange)",
    )  # fmt: skip
    title = f"Classes of tokens: {pair['arm_pair'].item()}"
    return Table(title, head, tuple(rows))


def _kept(at: xr.Dataset) -> Table:
    unit = at["unit"].attrs["long_name"]
    rows = []
    for name in at["choice"].values:
        choice = at.sel(choice=name)
        before, after = choice["kept"].values
        rows.append(
            (
                str(name),
                number(before),
                number(after),
                interval(*choice["kept_ci"].values),
                number(choice["kept_chance"]),
                p_value(float(choice["kept_p"]), smallest=float(choice["kept_smallest_p"])),
            )
        )
    n_chosen, n_types = at.sizes["rank"], at.sizes["token_type"]
    head = ("arms", "half chosen on (nat)", "other half (nat)", f"95% over {unit}s",
            "other half, runs exchanged", "p (exchange)")  # fmt: skip
    title = (
        f"The {n_chosen} most reliable of {n_types} frequent token ids: mean difference, with the "
        "sign it has where they were chosen"
    )
    return Table(title, head, tuple(rows))


def _ids(choice: xr.Dataset, pair: xr.Dataset, probe_set: xr.Dataset) -> Table:
    """The chosen ids in both halves, and one occurrence of each in the half that did not choose."""
    a, b = str(pair["arm_a"].item()), str(pair["arm_b"].item())
    unit = choice["unit"].attrs["long_name"]
    rows = []
    for i in range(choice.sizes["rank"]):
        at = choice.isel(rank=i)
        before, after = at["chosen_difference"].values
        rows.append(
            (
                str(at["chosen_text"].item()),
                number(before),
                number(after),
                interval(*at["shown_ci"].values),
                interval(*at["chosen_run_ci"].sel(half="second").values),
                str(int(at["shown_count"])),
                *(number(loss, digits=2) for loss in at["example_loss"].values),
                in_context(int(at["example"]), probe_set),
            )
        )
    head = (
        "token", "half chosen on (nat)", "other half (nat)", f"95% over {unit}s", "95% over runs",
        "occurrences", f"loss of {a}", f"loss of {b}", "in its text",
    )  # fmt: skip
    title = (
        f"Token ids that differ most reliably: {pair['arm_pair'].item()}, chosen on one half of "
        f"the {unit}s, shown in the other at the occurrence with the median difference"
    )
    return Table(title, head, tuple(rows))


def in_context(place: int, probe_set: xr.Dataset) -> str:
    """A target between marks, in the text around it, with line breaks as signs.

    Parameters
    ----------
    place : of the target, in reading order.
    probe_set : Dataset with `token` and `target (sequence, pos)`, and if known `vocabulary`.
    """
    token, target = (
        probe_set[name].transpose("sequence", "pos").values for name in ("token", "target")
    )
    sequence, pos = np.unravel_index(place, target.shape)
    ids = np.concatenate([token[sequence, :1], target[sequence]])
    before, own, after = ids[: pos + 1][-_BEFORE:], ids[[pos + 1]], ids[pos + 2 :][:_AFTER]
    return "…{}»{}«{}…".format(*(_joined(part, probe_set) for part in (before, own, after)))


def _joined(ids: NDArray, probe_set: xr.Dataset) -> str:
    if "vocabulary" not in probe_set:
        return " ".join(map(str, ids))
    texts = probe_set["vocabulary"].values.astype(object).astype(str)[ids]
    return "".join(texts).replace("\n", "↵")
