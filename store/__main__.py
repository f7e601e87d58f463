"""Say what is in a store, or read all of it and name what is damaged.

    python -m store studies/quick                       what is in a study, and its problems
    python -m store studies/quick/dense-seed0.zarr      in one run, or several
    python -m store verify studies/quick                read everything, name what is damaged
    python -m store s3://bucket/studies/quick           a study on object storage is told alike

The first reads metadata alone and takes a second or so. Problems are, for example, a run that is
unfinished, or was watched on another probe set than the rest; those that need no action are dim.

`verify` reads every committed chunk, a chunk at a time: checksums, values that are missing or out
of range, the hash of the probe set, and whether the runs saw the same batches. Each damage is named
with its run, variable, step and file, and with what brings the values back. A study folder that is
itself called verify is given as ./verify.

The exit status is 0, 1 if something needs action or is damaged, or 2 for a wrong call.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group

from store.contents import contents, opened
from store.study import named_stores, newest_study
from store.terminal import contents_shown, damage_shown, problems_shown, reading, size
from store.verification import stored_files, verify


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    args = _parser().parse_intermixed_args(argv)
    everything = args.paths[:1] == ["verify"]
    try:
        paths = args.paths[everything:] or [_newest()]
        command = _verify if everything else _describe
        return command(paths, as_json=args.json)
    except (ValueError, OSError) as error:
        print(f"store: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m store",
        usage="python -m store [-h] [--json] [verify] [STUDY_OR_RUNS ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="STUDY_OR_RUNS",
        help="folder or URL of a study, or some runs (default: the newest study under studies/)",
    )
    parser.add_argument("--json", action="store_true", help="print the same as JSON")
    return parser


def _newest() -> Path:
    """The newest study under studies/, which is named on standard error."""
    path = newest_study()
    print(f"store: no study given, taking the newest: {path}", file=sys.stderr)
    return path


def _describe(paths: Sequence[str | Path], *, as_json: bool) -> int:
    """Print what is in a study."""
    study = contents(*paths)
    if as_json:
        print(json.dumps(study.as_json(), indent=1))
    else:
        Console().print(contents_shown(study))
    return int(any(problem.needs_action for problem in study.problems))


def _verify(paths: Sequence[str | Path], *, as_json: bool) -> int:
    """Read everything and print what is damaged."""
    runs, problems = opened(named_stores(*paths)[1])
    files, damages = stored_files(runs)
    n_bytes = sum(file.n_bytes for file in files)
    with reading(n_bytes) as read:
        damages += verify(runs, files, read)
    damages.sort(key=lambda damage: damage.run)
    if as_json:
        told = {"runs": [run.name for run in runs], "files": len(files), "bytes": n_bytes}
        told |= {"problems": [*map(dataclasses.asdict, problems)]}
        told |= {"damage": [*map(dataclasses.asdict, damages)]}
        print(json.dumps(told, indent=1, default=str))
    else:
        console = Console()
        console.print(Group(*problems_shown(problems)))
        for damage in damages:
            console.print(damage_shown(damage), soft_wrap=True)
        read_of = f"{len(runs)} run{'s' * (len(runs) != 1)}, {len(files):,} files"
        found = f"{len(damages):,} damaged" if damages else "nothing damaged"
        if problems:
            found += f", {len(problems)} not readable at all"
        console.print(f"{read_of}, {size(n_bytes)} read: {found}", soft_wrap=True, highlight=False)
    return int(bool(damages or problems))


if __name__ == "__main__":
    sys.exit(main())
