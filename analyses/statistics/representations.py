"""Representations as arrays (token, feature): what every measure of similarity asks of them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def paired(x: NDArray, y: NDArray) -> tuple[NDArray, NDArray]:
    """Two representations of the same tokens, centred.

    Parameters
    ----------
    x, y : (token, feature), at least 4 tokens.

    Raises
    ------
    ValueError
        If they have different numbers of tokens or fewer than 4, values that are not finite, or
        are the same for all tokens.
    """
    require_same_tokens([x, y])
    return centred(x), centred(y)


def require_same_tokens(representations: Sequence[NDArray]) -> None:
    """Raises ValueError if they have different numbers of tokens."""
    numbers = sorted({len(x) for x in representations})
    if len(numbers) > 1:
        raise ValueError(
            f"representations of {numbers[0]} and {numbers[-1]} tokens cannot be compared; give "
            "all at the same tokens in the same order"
        )


def centred(x: NDArray) -> NDArray:
    """A representation (token, feature) without its mean; refuses what `paired` does."""
    x = floating(x)
    if len(x) < 4:
        raise ValueError(f"similarity needs at least 4 tokens, there are {len(x)}; give more text")
    mean = finite_mean(x)
    values = x - mean.astype(x.dtype)
    if not varies(float(np.vdot(values, values)), mean, like=x):
        refuse_constant(x)
    return values


def floating(x: NDArray) -> NDArray:
    """(token, feature) in the precision that is computed with: float64 stays, all else is float32.

    Raises
    ------
    ValueError
        If it has other dimensions, or no value.
    """
    x = np.asarray(x)
    if x.ndim != 2 or not x.size:
        raise ValueError(
            f"a representation has dimensions (token, feature), this one has shape {x.shape}; "
            "choose one layer and step, and bring sequences and positions together"
        )
    return x if x.dtype == np.float64 else x.astype(np.float32, copy=False)


def finite_mean(x: NDArray) -> NDArray[np.float64]:
    """Mean of each feature, (feature), which a value that is not finite makes not finite."""
    mean = x.mean(axis=0, dtype=np.float64)
    if not np.isfinite(mean).all():
        wrong = np.argwhere(~np.isfinite(x))
        at = f"{x[tuple(wrong[0])]} in row {wrong[0][0]}" if len(wrong) else "sums overflow"
        raise ValueError(
            f"a representation is not finite ({len(wrong)} values, {at}); leave out the tokens or "
            "the run, or record activations again"
        )
    return mean


def varies(square: float, mean: NDArray[np.float64], *, like: NDArray) -> bool:
    """Whether the summed squares of centred tokens are more than what rounding leaves.

    Parameters
    ----------
    square : sum over tokens and features.
    mean : (feature), what was taken away.
    like : (token, feature), the representation, for its size and precision.
    """
    return bool(square > len(like) * ((8 * np.finfo(like.dtype).eps * mean) ** 2).sum())


def refuse_constant(x: NDArray) -> None:
    raise ValueError(
        f"a representation of {len(x)} tokens is the same for all of them, so that it has no "
        "similarity to others; leave out the layer or the step"
    )
