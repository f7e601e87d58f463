"""One run on disk: laid out in full, filled a step at a time, readable at any moment.

A step counts once it is committed: its data are written first, the mark last, and each file is
replaced as a whole. A run that is killed therefore resumes from its last committed step, and a
reader never sees a step half written. What was written is on the disk when the call returns.

    run = Run.create("studies/quick/dense-0.zarr", probe_set, templates, steps=[0, 1, 2], ...)
    run.write(0, observe(model, tokens, probes))
    run.commit(0)
    run.dataset("losses")           # lazy Dataset (step, sequence, pos)

What is measured on a finished run, as knocking out its experts, is a group added to it, which
commits its steps by itself.

Without this code: `xr.open_zarr("studies/quick/dense-0.zarr", group="losses")`, where an unwritten
step reads as NaN, or -1 for integers.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self, final

import numpy as np
import xarray as xr
import zarr

from store.chunks import StoreError, chunk_file, load
from store.conform import OBSERVED, conform, require_same, training_rows
from store.durable import make_durable
from store.joined import Part, join
from store.layout import lay_out, lay_out_added, require_run
from store.places import place, sizes, zarr_store
from store.schema import ADDED, DIMENSIONS, GROUPS, variables_of

__all__ = ["Run", "StoreError"]


@final
class Run:
    """A run's store, to fill and to read; made by `create` or `open`.

    Attributes
    ----------
    path : its folder, `<study folder>/<name>.zarr`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        root = zarr.open_group(zarr_store(path, read_only=True), mode="r")
        self._attrs = root.attrs.asdict()
        self._arrays = _arrays_of(root)
        self._labels: dict[str, dict[str, np.ndarray]] = {}

    @classmethod
    def create(
        cls,
        path: str | Path,
        probe_set: xr.Dataset,
        templates: Mapping[str, xr.Dataset],
        *,
        steps: Sequence[int] | np.ndarray,
        training_steps: int,
        attrs: Mapping[str, Any],
        coordinates: Mapping[str, str | int | float],
    ) -> Self:
        """Lay out an empty run; the folder appears whole or not at all.

        Parameters
        ----------
        path : `<study folder>/<name>.zarr`, a folder or a URL, not there yet.
        probe_set : variables of the group `probe_set`, stored in full.
        templates : {group: one observation}, as the probes return it, without `step`; fixes
            variables, shapes and labels, not values.
        steps : scheduled steps, ascending, from 0 to `training_steps`.
        training_steps : optimizer steps of the whole run, all of which `training` has room for.
        attrs : what else to keep of the run (configuration, provenance), plain JSON.
        coordinates : scalar labels of the run (arm, seed, ...), by which a study groups its runs.

        Raises
        ------
        ValueError
            If the path is taken, or the schedule, a template or a label does not fit the schema.
        """
        path = place(path)
        lay_out(
            path,
            probe_set,
            templates,
            steps=steps,
            training_steps=training_steps,
            attrs=attrs,
            coordinates=coordinates,
        )
        return cls(path)

    def add_group(self, group: str, template: xr.Dataset, *, attrs: Mapping[str, Any]) -> Self:
        """Lay out one more group, for what is measured when training is over.

        The group has room for all scheduled steps; a step that is never filled takes no space. It
        appears whole or not at all.

        Parameters
        ----------
        group : one of `store.schema.ADDED`, which the run does not have yet.
        template : one observation, without `step`; fixes variables, shapes and labels.
        attrs : what to keep of how it was made, plain JSON.

        Returns
        -------
        Run
            The run opened anew, with the group.

        Raises
        ------
        ValueError
            If the run has the group, or the group or the template does not fit the schema.
        """
        probe_set = self.dataset("probe_set")
        lay_out_added(self.path, group, template, probe_set=probe_set, attrs=attrs)
        return type(self)(self.path)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a run that `create` made.

        Raises
        ------
        StoreError
            If there is none, or if a newer version of this code made it.
        """
        path = place(path)
        require_run(path)
        return cls(path)

    def __repr__(self) -> str:
        there = self._marked("observation")
        recorded = ", ".join(group for group in self.groups if group in OBSERVED)
        return f"<Run {self.name!r}: {there.sum()} of {there.size} steps, {recorded or 'no group'}>"

    @property
    def name(self) -> str:
        """Name of the run in its study."""
        return self.path.stem

    @property
    def attrs(self) -> dict[str, Any]:
        """What `create` was given, `probe_set_hash` and `schema_version`."""
        return copy.deepcopy(self._attrs)

    @property
    def coordinates(self) -> dict[str, Any]:
        """Scalar labels of the run: arm, seed, ..."""
        return self.attrs["coordinates"]

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups of the schema that this run has."""
        return tuple(group for group in GROUPS if group in self._arrays)

    @property
    def steps(self) -> np.ndarray:
        """Scheduled steps, ascending."""
        return self._labels_of("observation")["step"]

    @property
    def committed(self) -> np.ndarray:
        """Steps committed so far, ascending, whoever committed them."""
        return self.committed_in("observation")

    def committed_in(self, group: str) -> np.ndarray:
        """Steps of a group that may be read, ascending: of an added group, those it committed.

        Raises
        ------
        StoreError
            If this run has no such group.
        """
        return self.steps[self._marked(group)]

    @property
    def finished(self) -> bool:
        """Whether every scheduled step is committed."""
        return len(self.committed) == len(self.steps)

    def write(self, step: int, observed: Mapping[str, xr.Dataset]) -> None:
        """Put one step in its place; writing it again replaces it. It counts once committed.

        Parameters
        ----------
        step : a scheduled step.
        observed : {group: one observation}, alike the templates of `create`.

        Raises
        ------
        ValueError
            If the step is not scheduled, or if variables, shapes or labels are not those laid out.
        OSError
            If the disk is full or not writable; committed steps stay readable.
        """
        row = self._row(step)
        checked = {group: self._checked(group, one) for group, one in observed.items()}
        # Of the shape of a chunk, values are encoded as they are; else zarr would copy them first.
        self._put(
            slice(row, row + 1),
            [
                (self._writable[group][name], value[np.newaxis])
                for group, values in checked.items()
                for name, value in values.items()
            ],
        )

    def write_training(self, recorded: xr.Dataset) -> None:
        """Put consecutive training steps in their place.

        Parameters
        ----------
        recorded : variables of the group `training` (step), with `step` labelled; those left out
            stay as they are.

        Raises
        ------
        ValueError
            If the steps are unlabelled, not consecutive, or outside 1 ... `training_steps`.
        """
        values = conform(recorded, "training")
        rows = training_rows(recorded, self._arrays["training"]["step"].size)
        self._put(rows, [(self._writable["training"][n], value) for n, value in values.items()])

    def commit(self, step: int, *, group: str = "observation") -> None:
        """Mark a step as complete, in one atomic write.

        Parameters
        ----------
        step : a scheduled step.
        group : "observation" for all that training recorded, else an added group.

        Raises
        ------
        ValueError
            If the step is not scheduled, or the group has no marks of its own.
        """
        self._require(group)
        if group not in ("observation", *ADDED):
            raise ValueError(
                f"group {group!r} is committed with all that training recorded: call commit(step)"
            )
        row = self._row(step)
        self._put(slice(row, row + 1), [(self._writable[group]["committed"], np.array([True]))])

    def dataset(self, group: str) -> xr.Dataset:
        """What was recorded in a group up to now, lazily.

        Returns
        -------
        Dataset (step, ...)
            Committed steps only; `training` up to the last committed step; `probe_set` whole. The
            run's name and labels are scalar coordinates.

        Raises
        ------
        StoreError
            If this run has no such group; on reading values, if a chunk is damaged.
        """
        return join([self.part(group)]).isel(run=0)

    def arrays(self, group: str) -> dict[str, zarr.Array[Any]]:
        """Variables of a group on disk, by name, without labels and the marks of an added group."""
        self._require(group)
        marks = {"committed"} if group in ADDED else set()
        known = [name for name in variables_of(group) if name not in marks]
        return {name: self._arrays[group][name] for name in known if name in self._arrays[group]}

    def part(self, group: str) -> Part:
        """What this run gives to a Dataset that joins runs."""
        arrays = self.arrays(group)
        labels = dict(self._labels_of(group))
        laid_out = labels.pop("step", None)
        if laid_out is None:
            return Part(self.name, self.coordinates, group, arrays, labels)
        if group == "training":
            readable = laid_out <= self.committed.max(initial=0)
        else:
            readable = np.isin(laid_out, self.committed_in(group))
        rows = np.flatnonzero(readable)
        return Part(self.name, self.coordinates, group, arrays, labels, laid_out[rows], rows)

    def marks(self, group: str) -> zarr.Array[Any]:
        """The commit marks that a group goes by, on disk: its own if it was added."""
        self._require(group)
        return self._arrays[group if group in ADDED else "observation"]["committed"]

    def _marked(self, group: str) -> np.ndarray:
        """Whether each scheduled step of a group is committed."""
        marks = self.marks(group)
        # Only True is ever written, so the mark's file says it all; reading 50 would take 50 times
        # as long. A power cut may leave an empty file, which marks nothing.
        files = [chunk_file(marks, row) for row in range(marks.size)]
        written = sizes(files[0].parent)
        return np.array([written.get(file.name, 0) > 0 for file in files], dtype=bool)

    def _put(self, rows: slice, puts: Sequence[tuple[zarr.Array[Any], np.ndarray]]) -> None:
        """Put the same rows of some arrays on disk."""
        files = set()
        for array, values in puts:
            array[rows] = values
            files |= {chunk_file(array, row) for row in range(rows.start, rows.stop)}
        make_durable(files, within=self.path)

    @cached_property
    def _writable(self) -> dict[str, dict[str, zarr.Array[Any]]]:
        return _arrays_of(zarr.open_group(zarr_store(self.path, read_only=False), mode="r+"))

    def _labels_of(self, group: str) -> dict[str, np.ndarray]:
        """Labels of a group's dimensions, read once: they never change."""
        if group not in self._labels:
            arrays = self._arrays[group]
            self._labels[group] = {
                dim: load(arrays[dim], [np.arange(arrays[dim].size)])
                for dim in DIMENSIONS
                if dim in arrays
            }
        return self._labels[group]

    def _require(self, group: str) -> None:
        variables_of(group)
        if group not in self.groups:
            raise StoreError(
                f"run {self.name!r} has no group {group!r}, only {', '.join(self.groups)}; its "
                f"probes did not record it ({self.path})"
            )

    def _row(self, step: int) -> int:
        rows = np.flatnonzero(self.steps == step)
        if not len(rows):
            raise ValueError(
                f"step {step} is not scheduled in run {self.name!r}; scheduled are "
                f"{', '.join(map(str, self.steps))}"
            )
        return int(rows[0])

    def _checked(self, group: str, one: xr.Dataset) -> dict[str, np.ndarray]:
        """Values of one observation, after a check that they belong where they will be put."""
        self._require(group)
        if group not in OBSERVED:
            raise ValueError(f"{group!r} is not observed; write takes {', '.join(OBSERVED)}")
        values = conform(one, group)
        laid_out = [name for name in self._arrays[group] if name not in (*DIMENSIONS, "committed")]
        require_same(one, group, laid_out, self._labels_of(group))
        return values


def _arrays_of(root: zarr.Group) -> dict[str, dict[str, zarr.Array[Any]]]:
    """{group: {name: array}} of a run."""
    arrays: dict[str, dict[str, zarr.Array[Any]]] = {}
    for name_in_run, node in root.members(max_depth=None):
        if isinstance(node, zarr.Array):
            group, _, name = name_in_run.partition("/")
            # An array forgets this setting when it is closed; without it, a chunk of nothing but
            # fill values would be left out, and look lost.
            arrays.setdefault(group, {})[name] = node.with_config({"write_empty_chunks": True})
    return arrays
