"""Knock out every expert of a run, one at a time, and store how each token's loss changes.

    python -m models.ablate studies/quick/switch-seed0.zarr             # at the last step
    python -m models.ablate studies/quick/switch-*.zarr --steps all
    python -m models.ablate RUN --steps 0,100,400 --documents 20        # on part of the probe set

It needs the weights that `python -m models.train ... --keep-weights` keeps beside the run. Three
replacements stand in for an expert, defined in `models.knockout`: its mean output, zero, and the
router's second choice. The changes stand in the run's group `ablation`, in nats per token:
`loss_change_mean`, `loss_change_zero` and `loss_change_second_choice (step, layer, expert,
sequence, pos)`, above 0 where the expert helped.

All tokens are kept, in float16, so that any class of tokens can be asked about afterwards: two
layers of 8 experts on 20,480 tokens take 2 MB a step. Time and size grow with layers x experts x
tokens; of a large model, observe fewer steps, or the first `--documents` of the probe set, in which
domains take turns. Means are always over the whole probe set.

Interrupt it at any moment and give the same command again: it goes on with the next step.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read once, when torch is first imported

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import xarray as xr
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError

from models.config import ModelConfig
from models.knockout import REPLACEMENTS, expert_means, loss_changes
from models.train import named_device
from models.transformer import Transformer
from store.provenance import provenance
from store.run import Run

GROUP = "ablation"
# What another device or version of torch may change in a mean loss, in nats, is far below.
LARGEST_DRIFT = 0.01


def ablate(
    run: Run,
    steps: Sequence[int],
    *,
    device: torch.device,
    batch_size: int = 32,
    n_documents: int | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> list[int]:
    """Knock out the experts of a run at the steps where that is not done; return those steps.

    Parameters
    ----------
    steps : committed steps whose weights were kept.
    n_documents : the first so many documents of the probe set; None for all of them.
    advance : hears of so many knock-outs done, of `n_knockouts` in all a step.

    Raises
    ------
    ValueError
        If the run has no experts, lacks a step or its weights, or holds an ablation of other
        documents; if the weights are damaged or another run's.
    OSError
        If something cannot be written; what is committed stays readable.
    """
    missing = missing_steps(run, steps)
    if not missing:
        return []
    probe_set = run.dataset("probe_set").load()
    rows = _rows(probe_set, n_documents)
    token, target = (
        torch.from_numpy(probe_set[name].values).long() for name in ("token", "target")
    )
    cfg = model_config(run)
    if GROUP in run.groups:
        _require_same_documents(run, probe_set, rows)
    else:
        attrs = {"device": str(device), "batch_size": batch_size, **provenance()}
        run = run.add_group(GROUP, _observation(cfg, rows, _empty(cfg, rows, token)), attrs=attrs)
    model = Transformer(cfg).to(device)
    for step in missing:
        load_weights(model, run, step)
        means = expert_means(model, token, batch_size=batch_size)
        loss, change = loss_changes(
            model, token[rows], target[rows], means=means, batch_size=batch_size, advance=advance
        )
        _require_same_loss(run, step, rows, loss)
        run.write(step, {GROUP: _observation(cfg, rows, change)})
        run.commit(step, group=GROUP)
    return missing


def n_knockouts(run: Run, *, batch_size: int = 32, n_documents: int | None = None) -> int:
    """How many knock-outs of a batch one step takes."""
    cfg, rows = model_config(run), _rows(run.dataset("probe_set"), n_documents)
    return -(-len(rows) // batch_size) * len(cfg.moe_layers) * cfg.n_experts * len(REPLACEMENTS)


def missing_steps(run: Run, steps: Sequence[int]) -> list[int]:
    """Those of the steps at which no ablation of the run is committed.

    Raises
    ------
    ValueError
        If the run has no experts, or lacks a step or its weights.
    """
    model_config(run)
    if absent := sorted(set(steps) - set(run.committed.tolist())):
        raise ValueError(
            f"run {run.name!r} has no step {_listed(absent)}; it has {_listed(run.committed)}"
        )
    done = run.committed_in(GROUP).tolist() if GROUP in run.groups else []
    missing = [step for step in steps if step not in done]
    if lost := [step for step in missing if not weights_file(run, step).is_file()]:
        raise ValueError(
            f"run {run.name!r} kept no weights at step {_listed(lost)} "
            f"({weights_file(run, lost[0]).parent}); give steps whose weights are there, or remove "
            f"{run.path} and train it again with `python -m models.train ... --run {run.name} "
            "--keep-weights`"
        )
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
            f"run {run.name!r} is dense and has no experts to knock out; give runs of an arm that "
            "has some, as switch, ungated or hash"
        )
    config = run.attrs["config"]["runs"][0]["model"]
    return ModelConfig(**config | {"moe_layers": tuple(config["moe_layers"])})


def weights_file(run: Run, step: int) -> Path:
    """Where training kept the weights of a step."""
    return run.path.with_suffix(".weights") / f"step_{step:08d}.safetensors"


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


def _rows(probe_set: xr.Dataset, n_documents: int | None) -> np.ndarray:
    """Indices of the sequences of the first documents."""
    document = probe_set["document"].values.astype(object)
    chosen = list(dict.fromkeys(document))[:n_documents]
    return np.flatnonzero(np.isin(document, chosen))


def _require_same_documents(run: Run, probe_set: xr.Dataset, rows: np.ndarray) -> None:
    held = run.dataset(GROUP)["sequence"].values
    if not np.array_equal(held, rows):
        n_held, n_asked = (len(set(probe_set["document"].values[i])) for i in (held, rows))
        raise ValueError(
            f"the ablation of run {run.name!r} holds {n_held} documents, not {n_asked}; give "
            f"--documents {n_held}, which adds to what is there"
        )


def _empty(cfg: ModelConfig, rows: np.ndarray, token: torch.Tensor) -> dict[str, np.ndarray]:
    shape = (len(cfg.moe_layers), cfg.n_experts, len(rows), token.shape[1])
    return {name: np.zeros(shape, "float16") for name in REPLACEMENTS}


def _observation(cfg: ModelConfig, rows: np.ndarray, change: dict[Any, np.ndarray]) -> xr.Dataset:
    """Changes of loss as the group has them."""
    dims = ("layer", "expert", "sequence", "pos")
    return xr.Dataset(
        {f"loss_change_{name}": (dims, values) for name, values in change.items()},
        {"layer": sorted(cfg.moe_layers), "sequence": rows},
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


def _listed(steps: Sequence[int] | np.ndarray) -> str:
    return ", ".join(map(str, steps)) or "none"


def _steps(text: str) -> str | list[int]:
    """ "last", "all", or steps, for argparse."""
    return text if text in ("last", "all") else [int(step) for step in text.split(",")]


def _asked_steps(run: Run, steps: str | list[int]) -> list[int]:
    committed = run.committed.tolist()
    if not committed:
        raise ValueError(f"run {run.name!r} has no committed step yet; train it first")
    if steps == "all":
        kept = [step for step in committed if weights_file(run, step).is_file()]
        return kept or committed
    return committed[-1:] if steps == "last" else [int(step) for step in steps]


def _ablate_all(args: argparse.Namespace, device: torch.device, console: Console) -> None:
    """Ablate the runs in order, with a bar over all knock-outs that are left."""
    todo = [(run, _asked_steps(run, args.steps)) for run in map(Run.open, args.runs)]
    sizes = {"batch_size": args.batch_size, "n_documents": args.documents}
    total = sum(len(missing_steps(run, s)) * n_knockouts(run, **sizes) for run, s in todo)
    columns = (
        TextColumn("run {task.fields[i]} of {task.fields[n]}  [bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]} knock-outs/s "),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=total, i=0, n=len(todo), rate="-")

        def advance(n: int) -> None:
            bar.advance(task, n)
            speed = bar.tasks[task].speed
            bar.update(task, rate=f"{speed:.1f}" if speed else "-")

        for i, (run, steps) in enumerate(todo, 1):
            bar.update(task, description=run.name, i=i)
            began = time.perf_counter()
            done = ablate(run, steps, device=device, advance=advance, **sizes)
            seconds = time.perf_counter() - began
            what = f"ablated at step {_listed(done)}, {seconds:.0f} s" if done else (
                f"already ablated at step {_listed(steps)}"
            )  # fmt: skip
            console.print(f"{run.name}: {what}", highlight=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m models.ablate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="store of a run, NAME.zarr")
    parser.add_argument(
        "--steps", type=_steps, default="last", metavar="last|all|N,N",
        help="last, all whose weights were kept, or steps by number (default: last)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="sequences at a time (default: 32)"
    )
    parser.add_argument(
        "--documents", type=int, metavar="N",
        help="only the first N documents of the probe set (default: all)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    for name in ("batch_size", "documents"):
        if (value := getattr(args, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value}: give 1 or more")
    console = Console()
    try:
        _ablate_all(args, named_device(args.device), console)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}\nCommitted steps are safe; mend that and give the same command "
              "again to go on from them.", file=sys.stderr)  # fmt: skip
        return 1
    except KeyboardInterrupt:
        print("stopped; give the same command again to go on", file=sys.stderr)
        return 130
    folder = Path(args.runs[0]).parent
    console.print(f"ask it: python -m analyses.expert_importance {folder}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
