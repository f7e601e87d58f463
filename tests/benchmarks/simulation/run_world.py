r"""Losses of random runs on one fixed text: what an interval over training runs must allow for.

Run i, of arm a, has on token t the loss T(t) + A_a(t) + s_i e_i(t). T is how hard the token is and
A what runs of an arm share, both fixed with the text; s_i, log-normal around the arm's, is how
noisy the run is, and e_i is standard normal. With A = 0, the one-factor world, r_ij is the product
of what each run has in common with T, so delta is 0 whatever the noise of the arms. An effect of x
makes r between arms (1 - x) times the geometric mean of r within them.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

N_TOKENS = 1000
BLOCK = 200


class Arms(NamedTuple):
    """A population of runs for each arm.

    Attributes
    ----------
    reliability : (arm), r of two runs of the arm.
    effect : how much less two arms share than runs of one arm, as a share of r.
    spread : standard deviation of log s_i between runs of an arm.
    """

    reliability: tuple[float, ...]
    effect: float
    spread: float


def correlations(
    arms: Arms, arm: NDArray[np.intp], n: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """r of n independent sets of runs, (n, run, run).

    Parameters
    ----------
    arm : (run), index of each run's arm.
    """
    signal = _signal(len(arms.reliability), arms.effect)[arm].astype(np.float32)
    noise = np.sqrt(1 / np.array(arms.reliability) - 1)[arm]
    r = np.empty((n, len(arm), len(arm)))
    for start in range(0, n, BLOCK):
        size = (min(BLOCK, n - start), len(arm))
        own = noise * np.exp(arms.spread * rng.standard_normal(size))
        loss = rng.standard_normal((*size, N_TOKENS), dtype=np.float32)
        loss *= own[..., None].astype(np.float32)
        loss += signal
        loss -= loss.mean(axis=-1, keepdims=True)
        loss /= np.sqrt((loss**2).sum(axis=-1, keepdims=True))
        r[start : start + len(loss)] = loss @ np.swapaxes(loss, -1, -2)
    return r


def _signal(n_arms: int, effect: float) -> NDArray[np.float64]:
    """T + A of each arm, (arm, token), variance 1 and correlation 1 - effect exactly."""
    rng = np.random.default_rng(0)
    parts = np.stack([rng.gamma(1.5, size=N_TOKENS), *rng.standard_normal((n_arms, N_TOKENS))])
    parts -= parts.mean(axis=1, keepdims=True)
    orthogonal = np.linalg.qr(parts.T)[0].T * np.sqrt(N_TOKENS)
    return np.sqrt(1 - effect) * orthogonal[0] + np.sqrt(effect) * orthogonal[1:]
