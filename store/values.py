"""What committed values must be: there, in their range, and a distribution where they are one."""

from collections.abc import Mapping, Sequence

import numpy as np

from store.schema import Variable

# Rounding to float16 moves the sum of a distribution by less.
_TOLERANCE = 0.01
# A router may have no second choice, and another loop may not record all that ours does: there, all
# of a chunk is missing. A part of one never may be.
_MAY_BE_ABSENT = ("loss_change_second_choice",)
_AT_LEAST_ZERO = (
    "loss", "train_loss", "balance_loss", "learning_rate", "gradient_norm", "ngram_surprisal",
    "token_frequency", "tokens_seen", "router_prob",
)  # fmt: skip
_EXPERTS = ("expert_index", "expert_index_last_router", "expert_index_last_representation")


def fault(
    variable: Variable,
    values: np.ndarray,
    labels: Sequence[np.ndarray],
    sizes: Mapping[str, int],
) -> str | None:
    """What is wrong with committed values, in words; None if nothing can be told to be.

    Parameters
    ----------
    values : of one chunk.
    labels : of each of its dimensions.
    sizes : number of labels of `expert` and `d_vocab`, where the run has them.
    """
    if values.dtype.kind in "OTU":
        return None
    if values.dtype.kind == "f":
        values = values.astype("float32")
    absent = _missing(variable, values)
    if absent.all() and (variable.name in _MAY_BE_ABSENT or variable.group == "training"):
        return None
    for wrong, what in [(absent, "missing"), *_outside(variable, values, sizes)]:
        if wrong.any():
            return f"{what}: {_counted(wrong, variable.dims, labels)}"
    return None


def _missing(variable: Variable, values: np.ndarray) -> np.ndarray:
    return ~np.isfinite(values) if values.dtype.kind == "f" else values == variable.fill_value


def _outside(
    variable: Variable, values: np.ndarray, sizes: Mapping[str, int]
) -> list[tuple[np.ndarray, str]]:
    """Where values are not what the variable allows, and how to say so."""
    name, found = variable.name, []
    if name in _AT_LEAST_ZERO:
        found.append((values < 0, "below 0"))
    if name == "log_prob":
        found.append((values > 0, "a probability above 1"))
        found.append((_off(np.exp(values)), "probabilities that do not add up to 1"))
    if name == "router_prob":
        found.append((_off(values), "not a distribution over experts"))
    if name in _EXPERTS:
        n_experts = sizes.get("expert", np.inf)
        found.append(((values < 0) | (values >= n_experts), f"not an expert of {n_experts}"))
        ranked = np.sort(values, axis=-1)
        found.append((ranked[..., 1:] == ranked[..., :-1], "one expert chosen twice"))
    if name in ("token", "target"):
        d_vocab = sizes.get("d_vocab", np.inf)
        found.append(((values < 0) | (values >= d_vocab), f"not a token id of {d_vocab}"))
    return found


def _off(probabilities: np.ndarray) -> np.ndarray:
    """Whether each distribution along the last axis misses a sum of 1."""
    return np.abs(probabilities.sum(axis=-1) - 1) > _TOLERANCE


def _counted(wrong: np.ndarray, dims: Sequence[str], labels: Sequence[np.ndarray]) -> str:
    """How many of how many, and where the first is."""
    first = np.argwhere(wrong)[0]
    # `step` is named beside it, and ranks or a summed dimension are no place
    where = [
        f"{dim} {label[i]}"
        for dim, label, i in zip(dims, labels, first, strict=False)
        if dim not in ("step", "top_k")
    ]
    at = f", the first at {', '.join(where)}" if where else ""
    return f"{wrong.sum():,} of {wrong.size:,}{at}"
