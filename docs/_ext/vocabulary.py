"""Tables of `store.schema`: the words of the project, and every array of a run."""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from store.schema import ADDED, DIMENSIONS, GROUPS, SCHEMA_VERSION, variables_of


def dimensions() -> str:
    """The dimensions, as a Markdown table."""
    return table(
        ("dimension", "meaning"), [(f"`{name}`", text) for name, text in DIMENSIONS.items()]
    )


def groups() -> str:
    """A section of Markdown for every group of the store, with a table of its variables."""
    parts = [f"Schema version {SCHEMA_VERSION}."]
    for group in GROUPS:
        parts.append(f"## `{group}`")
        if group in ADDED:
            parts.append("Added to a finished run; its steps are committed in the group itself.")
        rows = [
            (f"`{v.name}`", " ".join(f"`{dim}`" for dim in v.dims), f"`{v.dtype}`", v.units,
             f"`{v.fill_value!r}`", v.long_name)
            for v in variables_of(group).values()
        ]  # fmt: skip
        parts.append(table(("variable", "dimensions", "type", "unit", "missing", "meaning"), rows))
    return "\n\n".join(parts)


def table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines
    )


class Vocabulary(SphinxDirective):
    """`{vocabulary}`: the dimensions."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(dimensions())


class StoreSchema(SphinxDirective):
    """`{store-schema}`: every group and variable."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(groups(), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("vocabulary", Vocabulary)
    app.add_directive("store-schema", StoreSchema)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
