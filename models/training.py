"""One run, trained and watched: where model, probes and store meet.

At each observation, in this order: the data, the resume state, the commit mark. A reader counts
only committed steps, and a killed run goes on from a state at or after the last of them, so that
whatever is written twice is written the same. Each is on the disk before the next is begun, so a
power cut is a kill like any other. Writing is behind training, by one observation at most.

Of several ranks each observes its sequences of the probe set, and rank 0 alone reads and writes the
run: it needs no lock, and the others no common folder.
"""

import dataclasses
import json
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.torch
import torch
import xarray as xr
from jaxtyping import Int
from torch import Tensor

from models.behind import Background, one_behind
from models.claims import claimed
from models.config import RunConfig, StudyConfig, as_json
from models.data import PreparedData, TokenStream, prepare
from models.distributed import from_first, gathered, n_ranks, own_rows, rank
from models.memory import keep_freed_memory
from models.optimization import Trainer
from models.probe_set import ProbeSet
from models.transformer import n_active_parameters, n_parameters
from probes.activations import ActivationProbe
from probes.base import Probe, n_passes, observe, spread_positions
from probes.losses import LossProbe
from probes.predictions import PredictionProbe
from probes.routing import RoutingProbe
from store.durable import make_durable
from store.layout import hash_probe_set
from store.provenance import provenance
from store.run import Run
from store.schema import variables_of


@dataclass(frozen=True)
class Job:
    """A run to be trained, as plain values that can be sent to another process.

    Attributes
    ----------
    folder : the study's folder, with its text prepared.
    study : the study, with its precision settled.
    run : the run to train.
    device : where to train, as torch names it.
    keep_weights : whether to keep the weights of every observation as safetensors.
    sharded : whether each of several ranks holds a share of the model and not the whole.
    compiled : whether training passes go through `torch.compile`.
    """

    folder: Path
    study: StudyConfig
    run: RunConfig
    device: str
    keep_weights: bool
    sharded: bool = False
    compiled: bool = False

    @property
    def store_path(self) -> Path:
        return self.folder / f"{self.run.name}.zarr"

    @property
    def resume_path(self) -> Path:
        return self.folder / f"{self.run.name}.resume.pt"

    @property
    def claim_path(self) -> Path:
        return self.folder / f"{self.run.name}.claim"

    @property
    def weights_path(self) -> Path:
        return self.folder / f"{self.run.name}.weights"

    @property
    def finished(self) -> bool:
        """Whether every observation of the run is committed."""
        return self.store_path.exists() and Run.open(self.store_path).finished


def train_run(job: Job, progress: Callable[[int, float], None]) -> float | None:
    """Train one run from wherever it stands to its end.

    Parameters
    ----------
    progress : hears the step and the batch's loss now and then.

    Returns
    -------
    float | None
        Its last mean loss, in nats; None if another command is training it.

    Raises
    ------
    ValueError
        If the loss stops being a number, the folder is not the job's, or there are more ranks than
        can share a batch.
    OSError
        If something cannot be written; what is committed stays readable.
    """
    cfg = job.study.train
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    keep_freed_memory()
    to_claim = rank() == 0 and not job.finished
    with claimed(job.claim_path) if to_claim else nullcontext(True) as held:
        if not from_first(held):
            return None
        data = prepare(job.study.data, job.folder / "data", n_sequences=cfg.n_sequences)
        if from_first(data.attrs) != data.attrs:
            raise ValueError(f"rank {rank()} has another text than rank 0; give all the same")
        Training(job, data).finish(progress)
        return from_first(_last_loss(job) if rank() == 0 else 0.0)


def _last_loss(job: Job) -> float:
    return float(Run.open(job.store_path).dataset("losses")["loss"].isel(step=-1).mean())


class Training:
    """One run being trained and watched, of a study whose text is prepared."""

    def __init__(self, job: Job, data: PreparedData) -> None:
        self.job, self.study, self.run, self.data = job, job.study, job.run, data
        stream = TokenStream(
            data.tokens,
            n_ctx=job.study.data.n_ctx,
            batch_size=job.study.train.batch_size,
            order_seed=job.study.data.order_seed,
            max_epochs=job.study.data.max_epochs,
        )
        _require_shares(job.study.train.batch_size, len(data.probe_set.token))
        self.trainer = Trainer(
            job.run, job.study.train, stream,
            device=torch.device(job.device), sharded=job.sharded, compiled=job.compiled,
        )  # fmt: skip
        self._own = own_rows(len(data.probe_set.token))
        target = torch.from_numpy(data.probe_set.target[self._own]).long()
        self.probes = probes_of(job.study, job.run, target)
        self._recorded: list[dict[str, Tensor | float | int]] = []

    def finish(self, progress: Callable[[int, float], None]) -> None:
        """Train to the last step, if it is not there; `progress(step, loss)` hears of it.

        Raises
        ------
        ValueError
            If the loss stops being a number.
        OSError
            If something cannot be written; what is committed stays readable.
        """
        store = self._open()
        if to_observe := from_first(_uncommitted(store)):
            self._resume()
            with one_behind() as in_background:
                self._train(store, to_observe, in_background, progress)
        if rank() == 0:
            self.job.resume_path.unlink(missing_ok=True)

    def _train(
        self,
        store: Run | None,
        to_observe: set[int],
        in_background: Background,
        progress: Callable[[int, float], None],
    ) -> None:
        scheduled = set(self.study.train.observation_steps)
        while True:
            step = self.trainer.step
            if step in to_observe:
                self._observe(store, in_background)
            if step == self.study.train.n_steps:
                return
            self._recorded.append(self.trainer.advance())
            if self.trainer.step % 10 == 0 or self.trainer.step in scheduled:
                progress(self.trainer.step, float(self._recorded[-1]["train_loss"]))

    def _open(self) -> Run | None:
        """The run's store, laid out if there is none; None on all ranks but the first."""
        if from_first(self.job.store_path.exists()):
            if rank() > 0:
                return None
            store = Run.open(self.job.store_path)
            self._require_same(store)
            return store
        seen = self._seen()
        if rank() > 0:
            return None
        self.job.resume_path.unlink(missing_ok=True)  # of a store that was removed
        return Run.create(
            self.job.store_path,
            _probe_set_dataset(self.data.probe_set),
            seen,
            steps=self.study.train.observation_steps,
            training_steps=self.study.train.n_steps,
            attrs={
                "study": self.study.name,
                "device": self.job.device,
                **self._made_from(),
                **provenance(),
            },
            coordinates=_coordinates(self.study, self.run),
        )

    def _require_same(self, store: Run) -> None:
        """Refuse to go on with a store that was begun on another text or configuration."""
        probe_set_hash = hash_probe_set(_probe_set_dataset(self.data.probe_set))
        mine = self._made_from() | {"probe_set_hash": probe_set_hash}
        for name in ("config", "corpus_hash", "tokenizer_hash", "probe_set_hash"):
            if store.attrs.get(name) != mine[name]:
                raise ValueError(
                    f"{store.path} was begun with another {name.removesuffix('_hash')} than the "
                    "study has now; remove that store to train the run anew, or give the study "
                    "another name (--set name=...)"
                )

    def _resume(self) -> None:
        """Put the trainer of every rank where the run was left."""
        if from_first(self.job.resume_path.exists()):
            self.trainer.restore(self._resume_state() if rank() == 0 else None)

    def _resume_state(self) -> dict[str, Any]:
        path = self.job.resume_path
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"{path} is damaged ({str(error).splitlines()[0]}); remove it, and the run starts "
                "again from step 0 and fills the same store"
            ) from error

    def _observe(self, store: Run | None, in_background: Background) -> None:
        """Look at the model as it is now, and have that written."""
        step, seen, state = self.trainer.step, self._seen(), self.trainer.state()
        if store is not None:
            rows = self._training_rows() if self._recorded else None
            in_background(partial(self._write, store, step, seen, rows, state))
        self._recorded.clear()

    def _write(
        self,
        store: Run,
        step: int,
        seen: dict[str, xr.Dataset],
        rows: xr.Dataset | None,
        state: dict[str, Any],
    ) -> None:
        store.write(step, seen)
        if rows is not None:
            store.write_training(rows)
        if self.job.keep_weights:
            self._save_weights(step, state["model"])
        if step < self.study.train.n_steps:
            with replaced(self.job.resume_path) as file:
                torch.save(state, file)
        store.commit(step)

    def _seen(self) -> dict[str, xr.Dataset]:
        """What the probes see in the whole probe set, on rank 0; nothing on the others."""
        token = torch.from_numpy(self.data.probe_set.token[self._own]).long()
        most = -(-len(self.data.probe_set.token) // n_ranks())
        # as many on every rank, whether it has a sequence less or not
        n_batches = n_passes(most, token.shape[1])
        parts = gathered(observe(self.trainer.model, token, self.probes, n_batches=n_batches))
        if len(parts) < 2:
            return parts[0] if parts else {}
        return {
            group: xr.concat(
                [part[group] for part in parts], "sequence",
                data_vars="minimal", coords="minimal", compat="override", join="override",
            )
            for group in parts[0]
        }  # fmt: skip

    def _training_rows(self) -> xr.Dataset:
        """The optimizer steps since the last observation, as the `training` group has them."""
        step = self.trainer.step
        columns = {
            name: ("step", np.array([_number(row[name]) for row in self._recorded], variable.dtype))
            for name, variable in variables_of("training").items()
        }
        rows = xr.Dataset(columns, {"step": np.arange(step - len(self._recorded) + 1, step + 1)})
        if not np.isfinite(rows["train_loss"]).all():
            raise ValueError(
                f"{self.run.name}: the training loss is no longer a number by step {step}; "
                "lower train.learning_rate or lengthen train.warmup_steps"
            )
        return rows

    def _save_weights(self, step: int, weights: dict[str, Tensor]) -> None:
        self.job.weights_path.mkdir(exist_ok=True)
        weights = {name: value.contiguous() for name, value in weights.items()}
        content = safetensors.torch.save(weights, metadata={"step": str(step)})
        with replaced(self.job.weights_path / f"step_{step:08d}.safetensors") as file:
            file.write(content)

    def _made_from(self) -> dict[str, Any]:
        """Configuration and text: what must be the same whenever the run goes on."""
        config = dataclasses.replace(self.study, runs=(self.run,))
        return {"config": json.loads(as_json(config)), **self.data.attrs}


def _uncommitted(store: Run | None) -> set[int]:
    return set() if store is None else {*store.steps.tolist()} - {*store.committed.tolist()}


def _require_shares(batch_size: int, n_probe_sequences: int) -> None:
    """Check that every rank has as many rows of a batch, and some of the probe set."""
    if batch_size % n_ranks():
        raise ValueError(
            f"train.batch_size {batch_size} cannot be divided evenly among {n_ranks()} ranks; "
            "start a number of ranks that divides it"
        )
    if n_probe_sequences < n_ranks():
        raise ValueError(
            f"the probe set has {n_probe_sequences} sequences for {n_ranks()} ranks; start fewer"
        )


def probes_of(
    study: StudyConfig, run: RunConfig, target: Int[Tensor, "sequence pos"]
) -> list[Probe]:
    """The instruments for a run: losses, what the study asks for, and routing if it has experts."""
    probes: list[Probe] = [LossProbe(target)]
    cfg = study.train
    if cfg.activation_sites and cfg.activation_positions:
        positions = spread_positions(study.data.n_ctx, cfg.activation_positions)
        probes.append(ActivationProbe(cfg.activation_sites, positions))
    if cfg.prediction_positions:
        positions = spread_positions(study.data.n_ctx, cfg.prediction_positions)
        probes.append(PredictionProbe(positions))
    if run.model.router is not None:
        probes.append(RoutingProbe(study.data.n_ctx))
    return probes


def _probe_set_dataset(probe_set: ProbeSet) -> xr.Dataset:
    variables = {}
    for name, variable in variables_of("probe_set").items():
        # numpy's fixed-width text would cut a token that ends in a NUL byte
        dtype = object if variable.dtype == "str" else None
        variables[name] = (variable.dims, np.asarray(getattr(probe_set, name), dtype))
    return xr.Dataset(variables, {"order": np.arange(1, len(probe_set.ngram_surprisal) + 1)})


def _coordinates(study: StudyConfig, run: RunConfig) -> dict[str, str | int]:
    """What analyses group runs by."""
    model = run.model
    return {
        "arm": run.arm,
        "architecture": "dense" if model.router is None else "moe",
        "router": model.router or "none",
        "seed": run.seed,
        "order_seed": study.data.order_seed,
        "width": model.d_model,
        "n_layers": model.n_layers,
        "n_heads": model.n_heads,
        "n_experts": model.n_experts,
        "experts_per_token": model.top_k,
        "n_parameters": n_parameters(model),
        "n_active_parameters": n_active_parameters(model),
    }


def _number(value: Tensor | float | int) -> float | int:
    return float(value) if isinstance(value, Tensor) else value


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file to write in the block, which then takes its place whole, or not at all.

    When the block has ended, it is on the disk under its name.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        make_durable([path], within=path.parent)
    except RuntimeError as error:
        # torch's writer says that it failed, and only in the context why: that the disk is full
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    finally:
        partial.unlink(missing_ok=True)
