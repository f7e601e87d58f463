"""What probes are to read from a representation: labels of the token that the model has just seen.

A class is a target only if it is frequent enough to be learned and scored on other text; tokens of
rarer classes are left out, and there is no class "other", which would be a mixture.
"""

from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.units import token_units
from analyses.statistics.token_classes import repeated_token, token_classes

CURRENT, PREVIOUS, NEXT = "current token", "previous token", "class of next token"
POSITION, DOMAIN = "position", "domain"
INITIAL, REPEATED, EXPERT = "word-initial", "repeated in context", "expert choice"
N_BANDS = 8


class Target(NamedTuple):
    """A division of tokens into classes.

    Attributes
    ----------
    classes : names.
    label : (token), which of `classes`; -1 for tokens left out.
    """

    classes: tuple[str, ...]
    label: NDArray[np.intp]


class Places(NamedTuple):
    """The tokens at which representations were recorded, in reading order.

    Attributes
    ----------
    token : (token), token ids.
    unit : (token), unit of text of each, numbered as `units`.
    units : coordinates `unit`, named.
    targets : by name.
    left_out : what no target could be made of, and why.
    """

    token: NDArray[np.intp]
    unit: NDArray[np.intp]
    units: NDArray[np.str_]
    targets: dict[str, Target]
    left_out: tuple[str, ...]


def places(
    probe_set: xr.Dataset,
    unit: xr.DataArray,
    pos: NDArray[np.intp],
    *,
    min_tokens: int,
    min_units: int,
    most: int,
) -> Places:
    """Targets that the text gives, at some positions of every sequence.

    Of the current token: its id, the id before it, whether it begins a word, whether the sequence
    had it before. Of where it stands: position, in at most eight equal bands, and domain. Of what
    follows: what is written in the next token.

    Parameters
    ----------
    probe_set : Dataset with `token` and `target (sequence, pos)` and `domain (sequence)`; without
        `vocabulary (d_vocab)`, the targets of what is written are left out.
    unit : DataArray (sequence), name of each sequence's unit of text (`unit_labels`).
    pos : positions of the tokens.
    min_tokens, min_units : tokens, and units of text they stand in, that a class needs.
    most : classes that a target may have; the commonest are kept.
    """
    at = probe_set.get_index("pos").get_indexer(pos)
    text = {name: probe_set[name].transpose("sequence", "pos").values for name in _TEXT}
    token = text["token"]
    names, token_unit = token_units(unit, n_pos=len(pos))
    found: dict[str, Target] = {}
    too_few = []
    for name, (classes, label) in _all_targets(probe_set, token, text["target"], at, pos).items():
        rules = {"min_tokens": min_tokens, "min_units": min_units, "most": most}
        kept = frequent_classes(label, token_unit, **rules)
        if len(kept) < 2:
            too_few.append(name)
            continue
        renumbered = np.full(label.max() + 2, -1)
        renumbered[kept] = np.arange(len(kept))
        found[name] = Target(tuple(classes[c] for c in kept), renumbered[label])
    return Places(token[:, at].ravel(), token_unit, names, found, tuple(too_few))


_TEXT = ("token", "target")


def frequent_classes(
    label: NDArray[np.intp],
    unit: NDArray[np.intp],
    *,
    min_tokens: int,
    min_units: int,
    most: int,
) -> NDArray[np.intp]:
    """Classes with enough tokens in enough units, the commonest of them, in their order.

    Parameters
    ----------
    label : (token), from 0; -1 is not counted.
    unit : (token), from 0.
    """
    counted = label >= 0
    n_tokens = np.bincount(label[counted])
    together = np.unique(np.stack([label[counted], unit[counted]]), axis=1)
    n_units = np.bincount(together[0], minlength=len(n_tokens))
    enough = np.flatnonzero((n_tokens >= min_tokens) & (n_units >= min_units))
    commonest = np.argsort(-n_tokens[enough], kind="stable")[:most]
    return enough[np.sort(commonest)]


def _all_targets(
    probe_set: xr.Dataset, token: NDArray, target: NDArray, at: NDArray[np.intp], pos: NDArray
) -> dict[str, tuple[tuple[str, ...], NDArray[np.intp]]]:
    """Names of classes and label of each token, rare ones included."""
    divided = token_classes(probe_set)
    begins = at == 0  # what came before the first token of a sequence is not known

    def of_previous(values: NDArray, unknown: int) -> NDArray[np.intp]:
        return np.where(begins, unknown, values[:, at - 1]).ravel().astype(np.intp)

    ids = tuple(map(str, range(int(max(token.max(), target.max())) + 1)))
    bands = np.array_split(np.arange(len(pos)), min(N_BANDS, len(pos)))
    spans = tuple(f"{pos[band[0]]} to {pos[band[-1]]}" for band in bands)
    band = np.repeat(np.arange(len(bands)), [len(b) for b in bands])
    found = {CURRENT: (ids, token[:, at].ravel().astype(np.intp)),
             PREVIOUS: (ids, of_previous(token, -1))}  # fmt: skip
    if "token" in divided:
        found[NEXT] = divided["token"].classes, divided["token"].label[:, at].ravel()
    found[POSITION] = spans, np.tile(band, len(token))
    found[DOMAIN] = divided["domain"].classes, divided["domain"].label[:, at].ravel()
    if "token" in divided:
        # the token at a position is the target of the one before
        kind = of_previous(divided["token"].label, -1)
        initial = np.where(kind < 0, -1, kind == 0).astype(np.intp)
        found[INITIAL] = ("other", INITIAL), initial
    found[REPEATED] = ("new", "repeated"), of_previous(repeated_token(token, target), 0)
    return found


def next_router(router_layers: NDArray, layer: int, site: str) -> int | None:
    """Layer of the first router that reads what stands at a site, or None.

    Parameters
    ----------
    router_layers : layers with experts.
    site : name of the site; the router of a layer reads the stream between attention and MLP.
    """
    passed = site in ("mlp_out", "resid_post")
    after = [int(at) for at in router_layers if at > layer or (at == layer and not passed)]
    return min(after, default=None)
