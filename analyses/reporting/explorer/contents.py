"""What the page shows of a study: an outline of all of it, and a part for each document."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.unanswerable import Unanswerable
from analyses.reporting import figures
from analyses.reporting.explorer.packing import (
    GRID,
    MISSING,
    coded,
    packed,
    packed_bytes,
    quantised,
)
from analyses.statistics.seed_noise import chance_share, critical_values

_BLOCK = 2**27  # numbers held at a time


class Contents(NamedTuple):
    """A study as the page reads it.

    Attributes
    ----------
    outline : runs, steps, documents, tokens by number, and mean losses of documents.
    parts : makes, document by document, its text, losses, experts and n-gram surprisal.
    n_numbers : how many losses and choices of experts there are.
    """

    outline: dict[str, Any]
    parts: Callable[[], Iterator[dict[str, str]]]
    n_numbers: int


class Documents(NamedTuple):
    """Documents in order of their first sequence.

    Attributes
    ----------
    names : (document)
    sequences : of each, its places in the probe set.
    of_sequence : (sequence), index of its document.
    """

    names: list[str]
    sequences: list[NDArray[np.intp]]
    of_sequence: NDArray[np.intp]


def documents(probe_set: xr.Dataset) -> Documents:
    """The documents of a probe set."""
    of_sequence = probe_set["document"].values.astype(object).astype(str)
    names = list(dict.fromkeys(of_sequence.tolist()))
    number = {name: i for i, name in enumerate(names)}
    index = np.array([number[name] for name in of_sequence.tolist()])
    return Documents(names, [np.flatnonzero(index == i) for i in range(len(names))], index)


def contents(
    loss: xr.DataArray,
    expert_index: xr.DataArray | None,
    probe_set: xr.Dataset,
    *,
    study: str,
    n_experts: int = 0,
    document_mean: NDArray[np.float64],
    loss_scale: float,
) -> Contents:
    """The outline of a study, and what makes its parts.

    Parameters
    ----------
    loss : DataArray (run, step, sequence, pos), nats, lazily, with coordinates `arm` and
        `architecture` on `run`.
    expert_index : DataArray (run, step, layer, sequence, pos, top_k), lazily, of some of the runs;
        None if no run has experts.
    probe_set : Dataset with `token`, `target (sequence, pos)`, `document`, `work` and `domain
        (sequence)`, and if known `vocabulary (d_vocab)` and `ngram_surprisal (order, sequence,
        pos)`.
    document_mean : (run, step, document), mean loss.
    loss_scale : loss from which on tokens have the full colour.

    Raises
    ------
    Unanswerable
        If a target is not the token that follows, so that there is no text to be read.
    """
    found, text = documents(probe_set), _text(probe_set)
    ids, local = np.unique(text, return_inverse=True)
    runs = loss["run"].values.astype(str).tolist()
    routed = [] if expert_index is None else expert_index["run"].values.astype(str).tolist()
    outline = {
        "study": study,
        "runs": _runs(loss),
        "steps": loss["step"].values.tolist(),
        "routed": [runs.index(run) for run in routed],
        "layers": [] if expert_index is None else expert_index["layer"].values.tolist(),
        "topK": 1 if expert_index is None else expert_index.sizes["top_k"],
        "nExperts": n_experts,
        "orders": probe_set["order"].values.tolist() if "ngram_surprisal" in probe_set else [],
        "nPos": loss.sizes["pos"],
        "grid": GRID,
        "missing": MISSING,
        "lossScale": loss_scale,
        "critical": np.round(critical_values(max(len(runs), 3)), 4).tolist(),
        "chance": _chances(loss["arm"].values.astype(str)),
        "documents": _described(found, probe_set),
        "tokenIds": ids.tolist(),
        "tokenTexts": _texts(ids, probe_set),
        "means": packed_bytes(document_mean.astype("<f4").tobytes()),
    }
    n_numbers = loss.size + (0 if expert_index is None else expert_index.size)

    def parts() -> Iterator[dict[str, str]]:
        n_blocks = min(-(-n_numbers // _BLOCK), len(found.names))
        for block in np.array_split(np.arange(len(found.names)), n_blocks):
            sequences = [found.sequences[i] for i in block]
            words = local.reshape(text.shape)
            yield from _parts(loss, expert_index, probe_set, words, sequences)

    return Contents(outline, parts, n_numbers)


def _parts(
    loss: xr.DataArray,
    expert_index: xr.DataArray | None,
    probe_set: xr.Dataset,
    text: NDArray[np.intp],
    sequences: list[NDArray[np.intp]],
) -> Iterator[dict[str, str]]:
    """Some documents, after reading each run and step once."""
    chosen = np.concatenate(sequences)
    losses = _read(loss.transpose("run", "step", "sequence", "pos"), chosen, quantised)
    routes = None
    if expert_index is not None:
        dims = ("run", "step", "layer", "sequence", "pos", "top_k")
        routes = _read(expert_index.transpose(*dims), chosen, coded)
    surprisal = None
    if "ngram_surprisal" in probe_set:
        surprisal = quantised(probe_set["ngram_surprisal"].transpose("order", ...).values)
    ends = np.cumsum([len(of_document) for of_document in sequences])
    for end, of_document in zip(ends, sequences, strict=True):
        here = slice(end - len(of_document), end)
        part = {"token": packed(coded(text[of_document])), "loss": packed(losses[:, :, here])}
        if routes is not None:
            part["expert"] = packed(routes[:, :, :, here])
        if surprisal is not None:
            part["surprisal"] = packed(surprisal[:, of_document])
        yield part


def _read(
    values: xr.DataArray, sequences: NDArray[np.intp], code: Callable[[NDArray], NDArray[np.uint16]]
) -> NDArray[np.uint16]:
    """Values (run, step, ...) of some sequences, read one run and step at a time."""
    at = {"sequence": sequences}
    n_runs, n_steps, *rest = values.isel(at).shape
    read = np.empty((n_runs, n_steps, *rest), dtype=np.uint16)
    for run, step in np.ndindex(n_runs, n_steps):
        read[run, step] = code(values.isel(run=run, step=step).isel(at).values)
    return read


def _text(probe_set: xr.Dataset) -> NDArray[np.int64]:
    """Token ids of each sequence with the last target, (sequence, pos + 1)."""
    token, target = (
        probe_set[name].transpose("sequence", "pos").values.astype(np.int64)
        for name in ("token", "target")
    )
    if (token[:, 1:] != target[:, :-1]).any():
        raise Unanswerable(
            "a target of the probe set is not the token that follows, so that there is no text to "
            "be read; give a study whose models predict the next token"
        )
    return np.concatenate([token, target[:, -1:]], axis=1)


def _texts(ids: NDArray[np.int64], probe_set: xr.Dataset) -> list[str]:
    """The text of token ids; the id itself where the vocabulary is not known."""
    if "vocabulary" not in probe_set:
        return [f"{i} " for i in ids]
    texts = probe_set["vocabulary"].values.astype(object).astype(str)
    return ["" if i < 0 else str(texts[i]) for i in ids]


def _runs(loss: xr.DataArray) -> list[dict[str, str]]:
    names, arms = loss["run"].values.astype(str), loss["arm"].values.astype(str)
    return [
        {"name": name, "arm": arm, "color": figures.arm_color(arm)}
        for name, arm in zip(names.tolist(), arms.tolist(), strict=True)
    ]


def _chances(arm: NDArray[np.str_]) -> dict[str, float]:
    """Share of tokens beyond noise by chance, by the numbers of runs of two arms, as "2,4"."""
    sizes = [n for n in np.unique(np.unique(arm, return_counts=True)[1]).tolist() if n > 1]
    return {
        f"{a},{b}": round(chance_share(a, b), 4) for i, a in enumerate(sizes) for b in sizes[i:]
    }


def _described(found: Documents, probe_set: xr.Dataset) -> list[dict[str, Any]]:
    work, domain = (probe_set[n].values.astype(object).astype(str) for n in ("work", "domain"))
    return [
        {
            "name": name,
            "work": str(work[places[0]]),
            "domain": str(domain[places[0]]),
            "nSequences": len(places),
        }
        for name, places in zip(found.names, found.sequences, strict=True)
    ]
