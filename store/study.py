"""The runs of one folder that share a probe set, joined on `run`.

study = Study.open("studies/quick")
study.dataset("losses")         # lazy Dataset (run, step, sequence, pos)
study.probe_set                 # what every run was watched on
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Self, final

import xarray as xr

from store.chunks import StoreError
from store.conform import OBSERVED
from store.joined import join
from store.places import place
from store.run import Run
from store.schema import variables_of


@final
class Study:
    """Runs that saw the same probe set, as one labelled whole; made by `open`.

    Attributes
    ----------
    name : name of the folder, or of the runs where they come from several.
    path : the folder; None if single runs were given.
    runs : at least one, by name where they come from a folder.
    """

    def __init__(self, name: str, path: Path | None, runs: tuple[Run, ...]) -> None:
        self.name, self.path, self.runs = name, path, runs

    @classmethod
    def open(cls, *paths: str | Path) -> Self:
        """Open a study.

        Parameters
        ----------
        paths : one study folder, or any number of runs.

        Raises
        ------
        StoreError
            If a path holds no run, or if two runs have the same name or other probe sets.
        """
        folder, stores = named_stores(*paths)
        runs = tuple(map(Run.open, stores))
        _require_one_study(runs)
        return cls(study_name(folder, stores), folder, runs)

    def __repr__(self) -> str:
        arms = Counter(str(run.coordinates.get("arm", run.name)) for run in self.runs)
        listed = ", ".join(f"{n} {arm}" for arm, n in arms.items())
        recorded = [g for g in OBSERVED if any(g in run.groups for run in self.runs)]
        n = len(self.runs)
        runs = f"{n} run{'s' * (n != 1)} ({listed})"
        return f"<Study {self.name!r}: {'; '.join(filter(None, [runs, ', '.join(recorded)]))}>"

    def dataset(self, group: str) -> xr.Dataset:
        """What the runs recorded in a group, lazily joined.

        Returns
        -------
        Dataset (run, step, ...)
            Of the runs that have the group. `step` is the union of their committed steps; a run
            without a step reads as the fill value (NaN, -1). The runs' labels (arm, seed, ...) are
            coordinates on `run`. The group `probe_set` is shared and has neither dimension.

        Raises
        ------
        StoreError
            If no run has the group, or if two runs recorded other variables, layers, widths ...;
            on reading values, if a chunk is damaged.
        """
        if group == "probe_set":
            return self.probe_set
        variables_of(group)
        runs = [run for run in self.runs if group in run.groups]
        if not runs:
            raise StoreError(
                f"no run of study {self.name!r} has the group {group!r}; it has "
                f"{', '.join(dict.fromkeys(g for run in self.runs for g in run.groups))}. Open a "
                "study whose runs recorded it"
            )
        return join([run.part(group) for run in runs])

    @property
    def probe_set(self) -> xr.Dataset:
        """The probe set that the runs share, lazily."""
        shared = self.runs[0].dataset("probe_set")
        return shared.drop_vars([name for name in shared.coords if name not in shared.dims])


def named_stores(*paths: str | Path) -> tuple[Path | None, list[Path]]:
    """What paths on a command line stand for.

    Parameters
    ----------
    paths : one study folder, or any number of runs.

    Returns
    -------
    folder : of the study; None if single runs were given.
    stores : paths of the runs, none of them opened.

    Raises
    ------
    StoreError
        If there is no path, or a folder holds no run.
    """
    given = [place(path) for path in paths]
    if not given:
        raise StoreError("no path given; give a study's folder or the paths of runs")
    if len(given) > 1 or _is_run(given[0]):
        return None, given
    folder = given[0]
    if not (stores := run_paths(folder)):
        missing = "is no folder" if folder.exists() else "does not exist"
        what = "holds no run" if folder.is_dir() else missing
        raise StoreError(
            f"{folder} {what}; train one with `python -m models.train quick`, or give the "
            "folder that holds the *.zarr of a study"
        )
    return folder, stores


def study_name(folder: Path | None, stores: Sequence[Path]) -> str:
    """Name of the folder that runs stand in; their own where they stand in several."""
    folders = {f.resolve().name for f in ([folder] if folder else [run.parent for run in stores])}
    return folders.pop() if len(folders) == 1 else " + ".join(run.stem for run in stores)


def newest_study(root: str | Path = "studies") -> Path:
    """Folder of the study that was worked on last, among the folders in `root`.

    Raises
    ------
    StoreError
        If none holds a run.
    """
    root = Path(root)
    folders = root.iterdir() if root.is_dir() else ()
    studies = [folder for folder in folders if run_paths(folder)]
    if not studies:
        raise StoreError(
            f"no study in {root}; train one with `python -m models.train quick` (or `make study`), "
            "or give the folder of a study"
        )
    return max(studies, key=_modified)


def run_paths(folder: Path) -> list[Path]:
    """Runs in a folder, by name; what is still being laid out (`*.partial`) is none."""
    return sorted(path for path in folder.glob("*.zarr") if _is_run(path))


def _is_run(path: Path) -> bool:
    return path.suffix == ".zarr" or (path / "zarr.json").is_file()


def _modified(study: Path) -> float:
    """When a run was added to a study or a step was committed."""
    # A folder's own time changes with its entries, not with what is written inside them.
    marks = (run / "observation" / "committed" / "c" for run in run_paths(study))
    return max(path.stat().st_mtime for path in (study, *marks) if path.exists())


def _require_one_study(runs: tuple[Run, ...]) -> None:
    names: dict[str, Run] = {}
    for run in runs:
        if run.name in names:
            raise StoreError(
                f"{names[run.name].path} and {run.path} are both named {run.name!r}; give each "
                "run once, and rename the folder of one of two runs of the same name"
            )
        names[run.name] = run
    first = runs[0]
    for run in runs[1:]:
        if run.attrs["probe_set_hash"] != first.attrs["probe_set_hash"]:
            raise StoreError(
                f"runs {first.name!r} ({first.path}) and {run.name!r} ({run.path}) were watched on "
                "different probe sets, so their losses cannot be compared token by token; open "
                "them separately, or train both in one study"
            )
