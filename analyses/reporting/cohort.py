"""What a study's runs allow to be said: which of them can be compared, and how far it carries."""

from collections.abc import Iterable

import numpy as np
import xarray as xr

from analyses.reporting.text import first_sentence, listed

ENOUGH_SEEDS = 3


def runs_sentence(arms: Iterable[str]) -> str:
    """How many runs each arm has, and whether that allows a claim about arms.

    Parameters
    ----------
    arms : arm of each run.
    """
    names, counts = np.unique(list(arms), return_counts=True)
    runs = listed(f"{n} of {arm}" for arm, n in zip(names, counts, strict=True))
    if counts.min() >= ENOUGH_SEEDS:
        return f"Runs: {runs}."
    return f"Runs: {runs}; fewer than {ENOUGH_SEEDS} allow no claim about arms."


def bracketed(result: xr.Dataset, counted: str = "", *, over_runs: bool = True) -> str:
    """What stands in brackets behind values: `95% intervals over 14 works (672 tokens)`.

    Parameters
    ----------
    result : Dataset with `unit` and, unless `counted` is given, `n_tokens (unit)`.
    counted : how many of what.
    over_runs : whether the interval over runs stands there, too.
    """
    counted = counted or f"{int(result['n_tokens'].sum()):,} tokens"
    then = ", then over runs" if over_runs else ""
    unit = result["unit"]
    return f"95% intervals over {unit.size} {unit.attrs['long_name']}s ({counted}){then}"


def stream_doubt(same_stream: bool, known: str) -> str:
    """What a finding adds of `stream_sentence`: its first sentence, or nothing if all is well.

    It begins with a space.
    """
    return "" if same_stream else f" {first_sentence(known)}"


def stream_sentence(stream_hash: xr.DataArray) -> tuple[bool, str]:
    """Whether the runs provably saw the same tokens in the same order, and what is known of it.

    What is known begins with a sentence that can stand alone.

    Parameters
    ----------
    stream_hash : DataArray (run, step), chained hash of the batches, 0 where not recorded.
    """
    hashes = stream_hash.transpose("run", "step").values
    common = np.flatnonzero((hashes != 0).all(axis=0))
    if not len(common):
        return False, (
            "Nothing proves that the runs saw the same tokens in the same order. They have no "
            "training step in common."
        )
    step, last = int(stream_hash["step"][common[-1]]), hashes[:, common[-1]]
    if (last == last[0]).all():
        return True, f"Up to step {step:,} all runs saw the same batches: their hashes agree."
    others, first = listed(stream_hash["run"].values[last != last[0]]), stream_hash["run"].values[0]
    return False, (
        f"The runs did not see the same tokens in the same order. By step {step:,} the batches of "
        f"{others} differ from those of {first}, and so may what they learned."
    )


def works_sentence(probe_set: xr.Dataset) -> str | None:
    """That documents of one work resemble each other; None if each is a work of its own.

    Parameters
    ----------
    probe_set : Dataset with `document`, `work` and `domain` (sequence).
    """
    names = ("document", "work", "domain")
    document, work, domain = (probe_set[n].values.astype(object).astype(str) for n in names)
    n_documents, n_works = len(np.unique(document)), len(np.unique(work))
    if n_documents == n_works:
        return None
    works = {name: len(np.unique(work[domain == name])) for name in np.unique(domain)}
    fewest = min(works, key=lambda name: works[name])
    return (
        f"The {n_documents} documents come from {n_works} works, and passages of one work resemble "
        "each other; as a sample of works they are fewer than they seem. A domain of few works "
        f"cannot be told from their authors: {fewest} has {works[fewest]}."
    )
