"""What a router may go by: labels of the tokens that it sees, in one order of the text.

A router at position p has seen the token there, not the target: all labels are of that token.
"""

from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.routing.observed import text_units
from analyses.statistics.documents import frequent_labels
from analyses.statistics.routing import Labelled, labelled
from analyses.statistics.token_classes import position_band, token_classes

DOMAIN, TOKEN, PREVIOUS = "domain", "token id", "previous token id"
CLASS, POSITION, GIVEN = "character class", "position", "domain given token id"


class TextLabels(NamedTuple):
    """The probe set, its sequences sorted by unit of text.

    Attributes
    ----------
    order : (sequence), places of the sequences in the probe set.
    units : coordinates `unit` and `n_tokens (unit)`.
    unit : (token), unit of each.
    of_tokens : labels of tokens, by name; the first is the token id, of frequent ids only.
    domain : (unit)
    domains : names.
    ids : (label), token id of each label of the token id.
    everywhere : one label for all tokens.
    of_domain, of_token_and_domain : the domain, and token id * number of domains + domain.
    """

    order: NDArray[np.intp]
    units: xr.Dataset
    unit: NDArray[np.intp]
    of_tokens: dict[str, Labelled]
    domain: NDArray[np.intp]
    domains: NDArray[np.str_]
    ids: NDArray[np.intp]
    everywhere: Labelled
    of_domain: Labelled
    of_token_and_domain: Labelled

    @property
    def names(self) -> list[str]:
        """All that information is measured of, in the order of tables."""
        first, *rest = self.of_tokens
        return [first, DOMAIN, GIVEN, *rest]


def text_labels(probe_set: xr.Dataset, unit: xr.DataArray, *, min_count: int) -> TextLabels:
    """Labels of the tokens of a probe set.

    Parameters
    ----------
    probe_set : Dataset with `token (sequence, pos)` and `domain (sequence)`; without `vocabulary
        (d_vocab)`, the kind of token is left out.
    unit : DataArray (sequence), name of each sequence's unit of text.
    min_count : occurrences that a token id needs to be counted.

    Raises
    ------
    ValueError
        If a unit has two domains, or no id occurs often enough.
    """
    of_sequence = np.unique(unit.values.astype(object).astype(str), return_inverse=True)[1]
    order = np.argsort(of_sequence, kind="stable")
    text = probe_set.isel(sequence=order)
    token = text["token"].transpose("sequence", "pos").values
    units, of_token = text_units(unit.isel(sequence=order), n_pos=token.shape[1])
    domain_names = text["domain"].values.astype(object).astype(str)
    domains, domain = np.unique(domain_names, return_inverse=True)
    found = _found(text, token, min_count=min_count)
    of_tokens = {name: labelled(label, of_token) for name, label in found.items()}
    at, n = of_tokens[TOKEN], len(domains)
    ids = np.zeros(at.n_labels, dtype=np.intp)
    ids[at.label] = token.ravel()[at.counted]
    domain_of_unit = _of_units(domain, of_sequence[order], units["unit"])
    domain_of_token = domain_of_unit[of_token]
    both = np.where(found[TOKEN] < 0, -1, found[TOKEN] * n + domain_of_token)
    return TextLabels(
        order,
        units,
        of_token,
        of_tokens,
        domain_of_unit,
        domains,
        ids,
        labelled(np.zeros_like(of_token), of_token),
        labelled(domain_of_token, of_token, n_labels=n),
        labelled(both, of_token, n_labels=n * at.n_labels),
    )


def _found(text: xr.Dataset, token: NDArray, *, min_count: int) -> dict[str, NDArray[np.intp]]:
    """Labels of all tokens, (token); -1 for none."""
    previous, kind = np.full(token.shape, -1), np.full(token.shape, -1)
    # what came before the first token of a sequence is not known
    earlier = frequent_labels(token[:, :-1].ravel(), min_count=min_count)
    previous[:, 1:] = earlier.reshape(len(token), -1)
    found = {
        TOKEN: frequent_labels(token.ravel(), min_count=min_count),
        PREVIOUS: previous.ravel(),
    }
    if "vocabulary" in text:
        kind[:, 1:] = _kind_of_input(text, token)
        found[CLASS] = kind.ravel()
    return found | {POSITION: position_band(*token.shape).label.ravel()}


def _kind_of_input(text: xr.Dataset, token: NDArray) -> NDArray[np.intp]:
    """What is written in each token but a sequence's first, whose own beginning is not known."""
    shifted = {
        "token": (("sequence", "pos"), token[:, :-1]),
        "target": (("sequence", "pos"), token[:, 1:]),
    }
    kept = text[["domain", "vocabulary"]].drop_vars("pos", errors="ignore")
    return token_classes(kept.assign(shifted))["token"].label


def _of_units(domain: NDArray, unit: NDArray, names: xr.DataArray) -> NDArray[np.intp]:
    """The domain of each unit, from domain and unit of each sequence."""
    of_unit = np.zeros(names.size, dtype=np.intp)
    of_unit[unit] = domain
    differs = np.flatnonzero(of_unit[unit] != domain)
    if len(differs):
        kind = names.attrs["long_name"]
        raise ValueError(
            f"{kind} {str(names.values[unit[differs[0]]])!r} of the probe set has sequences of two "
            f"domains; permuting {kind}s needs one domain each. Try --unit document"
        )
    return of_unit
