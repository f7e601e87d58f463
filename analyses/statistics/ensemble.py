r"""What two models gain by predicting together, from the losses of each alone.

The ensemble of models i and j gives a token the mean of the probabilities that they give it. With
losses l_i and l_j its gain over the mean of their losses is

    (l_i + l_j)/2 + ln((e^{-l_i} + e^{-l_j})/2) = ln cosh(d/2),    d = l_i - l_j

so it depends on the difference of the losses alone: about d²/8 where that is small and |d|/2 - ln 2
where it is large. It lies within ln 2 below |d|/2, what knowing the better model of each token
would gain, because the ensemble never loses more than ln 2 to the better one. It has no largest
value of its own.

References
----------
.. [1] Lakshminarayanan et al. (2017), arXiv:1612.01474 (the mean of models' probabilities).
.. [2] Krogh and Vedelsby (1994), "Neural network ensembles, cross validation, and active learning",
   NeurIPS 7, 231-238 (an ensemble gains by the ambiguity of its members).
"""

import numpy as np
from numpy.typing import NDArray

from analyses.statistics.documents import document_tokens


def ensemble_gain(first: NDArray, second: NDArray) -> NDArray[np.float64]:
    """Gain of two models' ensemble over the mean of their losses, token by token.

    Parameters
    ----------
    first, second : (...), losses in nats; they broadcast.

    Returns
    -------
    array (...), nats, at least 0.
    """
    gap = np.abs(np.subtract(first, second, dtype=np.float64))
    # ln cosh(gap/2), written so that neither a large nor a small gap loses its digits
    return gap / 2 + np.log1p(np.expm1(-gap) / 2)


def gain_sums(loss: NDArray, unit: NDArray[np.intp]) -> NDArray[np.float64]:
    """Sum of the gain over the tokens of each unit of text, for every pair of models.

    One unit is held at a time, for one model against the others: never every pair of every token.

    Parameters
    ----------
    loss : (model, token), nats; a model with a loss that is not finite is NaN in all its pairs.
    unit : (token), integer labels from 0.

    Returns
    -------
    array (unit, model, model), symmetric, zeros on the diagonal.
    """
    of_units = document_tokens(unit, n_tokens=loss.shape[-1])
    finite = np.isfinite(loss).all(axis=-1, keepdims=True)
    sums = np.zeros((len(of_units), len(loss), len(loss)))
    for of_unit, tokens in zip(sums, of_units, strict=True):
        own = loss[:, tokens]
        own = np.where(finite, own, np.nan).astype(np.float64)
        for i in range(len(own) - 1):
            of_unit[i, i + 1 :] = ensemble_gain(own[i], own[i + 1 :]).sum(axis=-1)
    return sums + np.swapaxes(sums, -1, -2)
