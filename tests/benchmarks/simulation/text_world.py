r"""Losses of four fixed models on random text: what an interval over units of text must allow for.

Token t of unit u has for model i, of arm a, the loss

    l_iut = 3 nats x m_u g_ut h_aut v_iu w_iut

All factors are independent with mean 1. m: how hard the unit is. g: how hard the token is. h: what
models of one arm share. v: how well the model does on the unit. w: all else. Gamma and lognormal
factors have the same coefficients of variation, so correlations, delta and mean squared differences
have the same closed form for both, whatever the numbers of tokens in the units.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.statistics.ensemble import ensemble_gain

ARM = np.array([0, 0, 1, 1])
PAIR = (0, 2)  # a dense and a MoE model
BETWEEN = ([0, 0, 1, 1], [2, 3, 2, 3])
MEAN_LOSS, MEAN_TOKENS = 3.0, 25
UNIT, TOKEN, SHARED, MODEL_UNIT, CONTROL = 0.5, 0.8, 0.2, 0.4, 0.3
OWN = np.array([0.3, 0.3, 0.5, 0.5])


class Text(NamedTuple):
    """Losses on the units of many replicates, one after the other.

    Attributes
    ----------
    loss : (model, token)
    control : (token), what is held fixed in partial correlations.
    start : (replicate x unit), first token of each unit.
    """

    loss: NDArray[np.float32]
    control: NDArray[np.float32]
    start: NDArray[np.intp]


def draw(law: str, lengths: str, n_units: int, rng: np.random.Generator) -> Text:
    """Units of text; "equal" lengths are 25 tokens, "ragged" ones lognormal about that mean."""
    count = np.full(n_units, MEAN_TOKENS)
    if lengths == "ragged":
        cv = 0.95
        count = np.maximum(2, np.round(MEAN_TOKENS * _factor("lognormal", cv, n_units, rng)))
    count = count.astype(np.intp)
    unit, n = np.repeat(np.arange(n_units), count), count.sum()
    difficulty = _factor(law, TOKEN, n, rng)
    shared = MEAN_LOSS * _factor(law, UNIT, n_units, rng)[unit] * difficulty
    arms = [shared * _factor(law, SHARED, n, rng) for _ in range(2)]
    loss = np.empty((len(ARM), n), dtype=np.float32)
    for model, arm in enumerate(ARM):
        of_unit = _factor(law, MODEL_UNIT, n_units, rng)[unit]
        loss[model] = arms[arm] * of_unit * _factor(law, OWN[model], n, rng)
    control = difficulty * _factor(law, CONTROL, n, rng)
    return Text(loss, control, np.concatenate([[0], count.cumsum()[:-1]]))


def _factor(law: str, cv: float, n: int, rng: np.random.Generator) -> NDArray[np.float32]:
    if law == "gamma":
        shape = np.float32(1 / cv**2)
        return rng.standard_gamma(shape, n, dtype=np.float32) / shape
    sd = np.float32(np.sqrt(np.log1p(cv**2)))
    return np.exp(sd * rng.standard_normal(n, dtype=np.float32) - sd**2 / 2)


def unit_moments(values: NDArray, start: NDArray[np.intp]) -> NDArray[np.float64]:
    """`document_moments` of adjacent units, for many replicates at once, (unit, 1 + m, 1 + m)."""
    z = [np.ones_like(values[0]), *values]
    moments = np.empty((len(start), len(z), len(z)))
    for i in range(len(z)):
        for j in range(i, len(z)):
            sums = np.add.reduceat(z[i] * z[j], start, dtype=np.float64)
            moments[:, i, j] = moments[:, j, i] = sums
    return moments


def closed_form() -> dict[str, float]:
    """What the intervals of `over_text` must cover, where second moments alone decide it."""
    both = (1 + UNIT**2) * (1 + TOKEN**2)
    within = both * (1 + SHARED**2)
    variance = within * (1 + MODEL_UNIT**2) * (1 + OWN**2) - 1
    i, j = PAIR
    z = np.arctanh((both - 1) / np.sqrt(variance[i] * variance[j]))
    variance_control = (1 + TOKEN**2) * (1 + CONTROL**2) - 1
    with_control = TOKEN**2 / np.sqrt(variance[[i, j]] * variance_control)
    partial = (np.tanh(z) - with_control.prod()) / np.sqrt((1 - with_control**2).prod())
    difference = MEAN_LOSS**2 * (variance[i] + variance[j] + 2 - 2 * both)
    return {
        "r": z,
        "mean of pairs": z,
        "partial r": np.arctanh(partial),
        "delta": np.log((both - 1) / (within - 1)),
        "squared difference": difference,
        "log squared difference": np.log(difference),
    }


def by_large_draw(law: str, rng: np.random.Generator, *, n_units: int) -> dict[str, float]:
    """The rest of what they must cover, from one long text."""
    from scipy.stats import rankdata

    loss = draw(law, "equal", n_units, rng).loss[list(PAIR)]
    ranks = np.stack([rankdata(row) for row in loss])
    gain = ensemble_gain(*loss).mean()
    return {
        "Spearman": np.arctanh(np.corrcoef(ranks)[0, 1]),
        "r of exp(-loss)": np.arctanh(np.corrcoef(np.exp(-loss, dtype=np.float64))[0, 1]),
        "ensemble gain": gain,
        "log ensemble gain": np.log(gain),
    }
