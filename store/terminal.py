"""What a store holds, and what is damaged in it, as rich renders it in a terminal."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from store.contents import Contents, RunContents
from store.problems import Problem
from store.schema import ADDED
from store.verification import Damage

# What the runs of a study usually share, told above their table.
_SHARED: dict[str, Callable[[RunContents], str | None]] = {
    "last step": lambda run: _thousands(run.last_step),
    "tokens a step": lambda run: _thousands(run.tokens_per_step),
    "probe tokens": lambda run: _thousands(run.probe_tokens),
    "probe set": lambda run: run.probe_set_hash[:8],
    "settings": lambda run: run.settings,
    "commit": lambda run: run.commit and run.commit[:7] + "+" * run.commit.endswith("+"),
}
_NONE = "\N{EN DASH}"
_FEW = 2


def contents_shown(study: Contents) -> Group:
    """A summary, a table of the runs, and the problems."""
    parts: list[RenderableType] = []
    if study.runs:
        parts += [_summary(study), _table(study.runs)]
    return Group(*parts, *problems_shown(study.problems))


def problems_shown(problems: Sequence[Problem]) -> list[RenderableType]:
    """Problems in words, those that need action first."""
    n_urgent = sum(problem.needs_action for problem in problems)
    counts = {"to act on": n_urgent, "that do no harm": len(problems) - n_urgent}
    told = ", ".join(f"{n} {kind}" for kind, n in counts.items() if n)
    parts: list[RenderableType] = [f"problems: {told}"] if problems else []
    for problem in sorted(problems, key=lambda problem: not problem.needs_action):
        parts.append(Text(printable(problem.where), "bold red" if problem.needs_action else "bold"))
        parts.append(Padding(Text(printable(problem.what)), (0, 0, 0, 2)))
    return parts


def damage_shown(damage: Damage) -> Text:
    """Where, which file, what is wrong, and what to do; paths are not broken into lines."""
    place = [damage.run, damage.place, f"step {damage.step}" if damage.step is not None else ""]
    return Text("\n").join(
        [
            Text(printable(", ".join(filter(None, place))), "bold red"),
            Text(f"  {printable(str(damage.file))}"),
            Text(f"  {printable(damage.what)}"),
            Text(f"  to mend it: {printable(damage.remedy)}", "dim"),
        ]
    )


@contextmanager
def reading(n_bytes: int) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left, while standard error is a terminal; hears of bytes read."""
    console = Console(stderr=True)
    columns = (
        TextColumn("reading"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=n_bytes)
        yield lambda n: bar.advance(task, n)


def printable(text: str) -> str:
    """Text of the data on one line, without control codes."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def size(n_bytes: int) -> str:
    """`2.1 GB`"""
    return decimal(n_bytes)


def _summary(study: Contents) -> Table:
    runs = study.runs
    arms = Counter(str(run.coordinates.get("arm", _NONE)) for run in runs)
    n_finished = sum(run.finished for run in runs)
    disk, raw = (sum(getattr(run, f"{kind}_bytes") for run in runs) for kind in ("disk", "raw"))
    summary = {
        "study": study.name,
        "runs": f"{len(runs)} ({', '.join(f'{n} {arm}' for arm, n in arms.items())}), "
        + ("all finished" if n_finished == len(runs) else f"{n_finished} finished"),
        "on disk": f"{size(disk)}, {disk / max(raw, 1):.0%} of {size(raw)} of numbers",
        "groups": ", ".join(_common_groups(runs)),
        **{name: _by_value(runs, tell) for name, tell in _SHARED.items()},
    }
    table = Table.grid(padding=(0, 2))
    for name, value in summary.items():
        table.add_row(Text(name, "dim"), Text(printable(value)))
    return table


def _by_value(runs: Sequence[RunContents], tell: Callable[[RunContents], str | None]) -> str:
    """What all runs say; where they differ, each with its runs, or their number."""
    names: dict[str, list[str]] = {}
    for run in runs:
        names.setdefault(tell(run) or _NONE, []).append(run.name)
    if len(names) == 1:
        return next(iter(names))
    return ", ".join(
        f"{value} ({', '.join(of) if len(of) <= _FEW else f'{len(of)} runs'})"
        for value, of in names.items()
    )


def _table(runs: Sequence[RunContents]) -> Table:
    named = all(
        run.name == "{arm}-seed{seed}".format_map({"arm": None, "seed": None} | run.coordinates)
        for run in runs
    )
    rows = [_cells(run, _common_groups(runs)) for run in runs]
    hidden = {"arm", "seed"} if named else set()
    hidden |= {name for name in ("more groups",) if not any(row[name] for row in rows)}
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for name in (name for name in rows[0] if name not in hidden):
        is_text = name in ("run", "arm", "more groups")
        table.add_column(
            name, justify="left" if is_text else "right", no_wrap=name != "more groups"
        )
    for run, cells in zip(runs, rows, strict=True):
        shown = (Text(printable(cell)) for name, cell in cells.items() if name not in hidden)
        table.add_row(*shown, style="" if run.finished else "yellow")
    return table


def _cells(run: RunContents, common: Sequence[str]) -> dict[str, str]:
    """A row of the table, by column."""
    more = [
        f"{group} ({n})" if group in ADDED else group
        for group, n in run.groups.items()
        if group not in ("observation", *common)
    ]
    return {
        "run": run.name,
        "arm": str(run.coordinates.get("arm", _NONE)),
        "seed": str(run.coordinates.get("seed", _NONE)),
        "parameters": _thousands(run.coordinates.get("n_parameters")) or _NONE,
        "steps": f"{run.committed}/{run.scheduled}",
        "on disk": size(run.disk_bytes),
        "of raw": f"{run.disk_bytes / run.raw_bytes:.0%}" if run.raw_bytes else _NONE,
        "more groups": ", ".join(more),
    }


def _common_groups(runs: Sequence[RunContents]) -> list[str]:
    """Groups that all runs have, but for the marks."""
    return [
        group
        for group in runs[0].groups
        if group not in ("observation", *ADDED) and all(group in run.groups for run in runs)
    ]


def _thousands(number: int | None) -> str | None:
    return None if number is None else f"{number:,}"
