"""What a study holds, told from metadata, labels and commit marks alone: nothing large is read."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from store.chunks import StoreError
from store.places import all_sizes
from store.problems import Problem, leftovers, problems_among, problems_of, recorded
from store.run import Run
from store.study import named_stores, study_name


@dataclass(frozen=True)
class RunContents:
    """One run.

    Attributes
    ----------
    name, path, coordinates, schema_version, probe_set_hash : as `Run` has them.
    committed, scheduled : number of steps.
    last_step : the last one committed; None if none is.
    finished : whether all are committed.
    groups : readable steps of each group; None of the probe set, which has none.
    probe_tokens : tokens that it is observed on; None where they were not stored.
    tokens_per_step : of training; None where that was not recorded.
    disk_bytes : size of all its files.
    raw_bytes : what its readable numbers take as plain arrays.
    settings : short hash of its configuration but for the run itself; None without one.
    commit : of the code that made it, with "+" if that had been changed; None if not known.
    created : when, ISO 8601; None if not known.
    """

    name: str
    path: Path
    coordinates: dict[str, Any]
    schema_version: int
    probe_set_hash: str
    committed: int
    scheduled: int
    last_step: int | None
    finished: bool
    groups: dict[str, int | None]
    probe_tokens: int | None
    tokens_per_step: int | None
    disk_bytes: int
    raw_bytes: int
    settings: str | None
    commit: str | None
    created: str | None


@dataclass(frozen=True)
class Contents:
    """A study: the runs that can be opened, and what is wrong with any.

    Attributes
    ----------
    name : of the study.
    folder : of the study; None if single runs were given.
    """

    name: str
    folder: Path | None
    runs: tuple[RunContents, ...]
    problems: tuple[Problem, ...]

    def as_json(self) -> dict[str, Any]:
        """The same as plain JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))


def contents(*paths: str | Path) -> Contents:
    """What is in a study, or in some runs, that need not fit together.

    Raises
    ------
    StoreError
        If there is no path, or a folder holds no run.
    """
    folder, stores = named_stores(*paths)
    runs, problems = opened(stores)
    told, streams = [], []
    for run in runs:
        try:
            streams.append((run, recorded(run, "stream_hash")))
            told.append(_contents_of(run))
            problems += problems_of(run)
        except StoreError as error:
            problems.append(Problem(run.name, str(error)))
    problems += problems_among(streams)
    problems += leftovers(folder, {run.name: run.finished for run in told}) if folder else []
    name = study_name(folder, stores)
    return Contents(name, folder, tuple(told), tuple(problems))


def opened(stores: Sequence[Path]) -> tuple[list[Run], list[Problem]]:
    """The runs that can be opened, and what is wrong with the others."""
    runs: list[Run] = []
    problems: list[Problem] = []
    for store in stores:
        try:
            runs.append(Run.open(store))
            if absent := {"observation", "probe_set", "training"} - set(runs[-1].groups):
                runs.pop()
                raise StoreError(f"{store} says in zarr.json that it has no {sorted(absent)}")
        except (ValueError, KeyError) as error:  # of zarr, where its metadata make no sense
            what = str(error)
            if (store / "probe_set").is_dir():
                what += (
                    ". If it is a run whose zarr.json was lost or damaged, restore that file from "
                    "a copy, or delete the folder and train the run again"
                )
            problems.append(Problem(store.stem, what))
    return runs, problems


def _contents_of(run: Run) -> RunContents:
    attrs, committed = run.attrs, run.committed
    groups = {group: _readable(run, group) for group in run.groups}
    token, commit = run.arrays("probe_set").get("token"), attrs.get("commit")
    return RunContents(
        name=run.name,
        path=run.path,
        coordinates=run.coordinates,
        schema_version=attrs["schema_version"],
        probe_set_hash=attrs["probe_set_hash"],
        committed=len(committed),
        scheduled=len(run.steps),
        last_step=int(committed[-1]) if len(committed) else None,
        finished=run.finished,
        groups=groups,
        probe_tokens=token.size if token is not None else None,
        tokens_per_step=_tokens_per_step(run),
        disk_bytes=sum(all_sizes(run.path).values()),
        raw_bytes=sum(
            array.dtype.itemsize * math.prod(array.shape[1:]) * (array.shape[0] if n is None else n)
            for group, n in groups.items()
            for array in run.arrays(group).values()
            if array.dtype.kind != "T"
        ),
        settings=_settings(attrs.get("config")),
        commit=commit and commit + "+" * bool(attrs.get("dirty")),
        created=attrs.get("created"),
    )


def _readable(run: Run, group: str) -> int | None:
    """Steps of a group that may be read; None of the probe set."""
    if group == "training":
        return int(run.committed.max(initial=0))
    return None if group == "probe_set" else len(run.committed_in(group))


def _tokens_per_step(run: Run) -> int | None:
    """Mean over training so far."""
    seen = recorded(run, "tokens_seen")
    return round(seen[-1] / len(seen)) if len(seen) and seen[-1] > 0 else None


def _settings(config: dict[str, Any] | None) -> str | None:
    """Short hash of what the runs of a study have in common."""
    if config is None:
        return None
    common = {name: value for name, value in config.items() if name != "runs"}
    return hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()[:8]
