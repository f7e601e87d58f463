"""Measures a finished run again, with the weights that it kept.

`python -m models.train ... --keep-weights` keeps the weights of every observed step beside the run.
What is measured with them is said in a `Measurement`, and becomes a group added to the run
(`store.run.Run.add_group`). Finding the steps that are left, checking that weights are the run's
own, and storing a step at a time are here; the command line is in `models.kept_command`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
import xarray as xr
from jaxtyping import Int
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from models.config import ModelConfig
from models.transformer import Transformer
from store.provenance import provenance
from store.run import Run

Advance = Callable[[int], None]
# What another device or version of torch may change in a mean loss, in nats, is far below.
LARGEST_DRIFT = 0.01


class Text(NamedTuple):
    """The probe set, and which of its sequences are measured.

    Attributes
    ----------
    token, target : of all sequences.
    rows : the sequences measured, ascending.
    """

    token: Int[Tensor, "sequence pos"]
    target: Int[Tensor, "sequence pos"]
    rows: NDArray[np.intp]


@dataclass(frozen=True)
class Measurement:
    """What a command measures.

    Attributes
    ----------
    group : of the store, one of `store.schema.ADDED`.
    done, parts : "ablated", and "knock-outs", of which a step takes several.
    empty : the layout of one observation, whose values do not matter.
    observe : from the model at a step (run, step, model, text, batch_size, advance) the losses of
        the measured sequences (sequence, pos) and one observation; `advance` hears of parts done.
    n_parts : of one step (cfg, text, batch_size).
    require : raises ValueError for a run that cannot be measured, before anything is begun.
    """

    group: str
    done: str
    parts: str
    empty: Callable[[ModelConfig, Text], xr.Dataset]
    observe: Callable[
        [Run, int, Transformer, Text, int, Advance], tuple[NDArray[np.float32], xr.Dataset]
    ]
    n_parts: Callable[[ModelConfig, Text, int], int]
    require: Callable[[Run], object] = lambda run: None


def measure(
    run: Run,
    steps: Sequence[int],
    what: Measurement,
    *,
    device: torch.device,
    batch_size: int = 32,
    n_documents: int | None = None,
    advance: Advance = lambda n: None,
) -> list[int]:
    """Measure a run at the steps where that is not done; return those steps.

    Parameters
    ----------
    steps : committed steps whose weights were kept.
    n_documents : the first so many documents of the probe set; None for all of them.
    advance : hears of so many parts done, of `n_parts` in all a step.

    Raises
    ------
    ValueError
        If the run has no experts, lacks a step or its weights, or holds the same of other tokens;
        if the weights are damaged or another run's.
    OSError
        If something cannot be written; what is committed stays readable.
    """
    missing = missing_steps(run, steps, what)
    if not missing:
        return []
    cfg, text = model_config(run), text_of(run, n_documents)
    empty = what.empty(cfg, text)
    if what.group in run.groups:
        _require_same_tokens(run, what.group, empty)
    else:
        attrs = {"device": str(device), "batch_size": batch_size, **provenance()}
        run = run.add_group(what.group, empty, attrs=attrs)
    model = Transformer(cfg).to(device)
    for step in missing:
        load_weights(model, run, step)
        loss, observed = what.observe(run, step, model, text, batch_size, advance)
        _require_same_loss(run, step, text.rows, loss)
        run.write(step, {what.group: observed})
        run.commit(step, group=what.group)
    return missing


def missing_steps(run: Run, steps: Sequence[int], what: Measurement) -> list[int]:
    """Those of the steps at which a run was not measured.

    Raises
    ------
    ValueError
        If the run has no experts, lacks a step or its weights, or is otherwise unfit.
    """
    model_config(run)
    if absent := sorted(set(steps) - set(run.committed.tolist())):
        raise ValueError(
            f"run {run.name!r} has no step {listed(absent)}; it has {listed(run.committed)}"
        )
    done = run.committed_in(what.group).tolist() if what.group in run.groups else []
    missing = [step for step in steps if step not in done]
    require_weights(run, missing)
    if missing:
        what.require(run)
    return missing


def model_config(run: Run) -> ModelConfig:
    """Architecture of a run that has experts.

    Raises
    ------
    ValueError
        If it has none.
    """
    if run.coordinates.get("architecture") != "moe":
        raise ValueError(
            f"run {run.name!r} is dense and has no experts; give runs of an arm that has some, as "
            "switch, ungated or hash"
        )
    config = run.attrs["config"]["runs"][0]["model"]
    return ModelConfig(**config | {"moe_layers": tuple(config["moe_layers"])})


def text_of(run: Run, n_documents: int | None) -> Text:
    """The probe set of a run, of which the sequences of the first documents are measured."""
    probe_set = run.dataset("probe_set").load()
    document = probe_set["document"].values.astype(object)
    chosen = list(dict.fromkeys(document))[:n_documents]
    token, target = (
        torch.from_numpy(probe_set[name].values).long() for name in ("token", "target")
    )
    return Text(token, target, np.flatnonzero(np.isin(document, chosen)))


def weights_file(run: Run, step: int) -> Path:
    """Where training kept the weights of a step."""
    return run.path.with_suffix(".weights") / f"step_{step:08d}.safetensors"


def require_weights(run: Run, steps: Sequence[int]) -> None:
    """Raises ValueError if the weights of a step were not kept."""
    if lost := [step for step in steps if not weights_file(run, step).is_file()]:
        raise ValueError(
            f"run {run.name!r} kept no weights at step {listed(lost)} "
            f"({weights_file(run, lost[0]).parent}); give steps whose weights are there, or remove "
            f"{run.path} and train it again with `python -m models.train ... --run {run.name} "
            "--keep-weights`"
        )


def load_weights(model: Transformer, run: Run, step: int) -> None:
    """Give the model the weights that a run had at a step.

    Raises
    ------
    ValueError
        If the file is damaged, or holds other weights than the model's.
    """
    path = weights_file(run, step)
    try:
        model.load_state_dict(safetensors.torch.load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"{path} is damaged or of another model ({str(error).splitlines()[0]}); restore it "
            f"from a copy, or leave step {step} out with --steps"
        ) from None


def listed(steps: Sequence[int] | np.ndarray) -> str:
    """`0, 100, 400`"""
    return ", ".join(map(str, steps)) or "none"


def _require_same_tokens(run: Run, group: str, asked: xr.Dataset) -> None:
    held = run.dataset(group)
    if not np.array_equal(held["sequence"].values, asked["sequence"].values):
        document = run.dataset("probe_set")["document"].values
        n_held, n_asked = (len(set(document[d["sequence"].values])) for d in (held, asked))
        raise ValueError(
            f"group {group!r} of run {run.name!r} holds {n_held} documents, not {n_asked}; give "
            f"--documents {n_held}, which adds to what is there"
        )
    if not np.array_equal(held["pos"].values, asked["pos"].values):
        n_held, n_asked = held.sizes["pos"], asked.sizes["pos"]
        raise ValueError(
            f"group {group!r} of run {run.name!r} holds {n_held} positions of a sequence, not "
            f"{n_asked}; give --positions {n_held}, which adds to what is there"
        )


def _require_same_loss(run: Run, step: int, rows: np.ndarray, loss: np.ndarray) -> None:
    """The weights are the run's if they give the losses it recorded."""
    recorded = run.dataset("losses")["loss"].sel(step=step).values[rows]
    drift = float(np.abs(recorded - loss).mean())
    if not drift < LARGEST_DRIFT:
        raise ValueError(
            f"{weights_file(run, step)} gives losses that differ from those of run {run.name!r} by "
            f"{drift:.3g} nats a token: these are weights of another run; restore the right ones"
        )
