import numpy as np
import xarray as xr
from matplotlib.colors import to_hex

from analyses.reporting import figures
from analyses.reporting.coloured_text import plot_text, shown_text


def _shown(texts: list[str], experts: list[int]) -> xr.Dataset:
    return xr.Dataset(
        {
            "text": (("sequence", "pos"), np.array([texts], dtype=object)),
            "expert": (("layer", "sequence", "pos"), np.array([[experts]], dtype=float)),
        },
        {"layer": [3]},
    )


def test_every_token_stands_on_the_colour_of_its_expert() -> None:
    figure = plot_text(_shown(["the", " cat", "\n", "$x$"], [2, 5, 2, 7]))
    (ax,) = figure.axes
    cells = [(t.get_text(), to_hex(p.get_facecolor())) for t, p in zip(ax.texts, ax.patches,
                                                                       strict=True)]  # fmt: skip
    key, tokens = dict(cells[1:4]), dict(cells[4:])
    assert tokens == {"the": key[" 2 "], " cat": key[" 5 "], "⏎": key[" 2 "], "$x$": key[" 7 "]}
    assert len(set(key.values())) == 3


def test_hostile_text_is_drawn_and_never_acts() -> None:
    texts = ["<script>", "$\\frac", "\x1b[31m", "\u4f60", "", "x" * 200, "]]>-->"]
    figure = plot_text(_shown(texts, [0] * len(texts)))
    svg = figures.rendered(figure, suffix="svg").decode()
    assert "<script>" not in svg
    assert "\x1b" not in svg


def test_experts_beyond_the_colours_are_grey() -> None:
    figure = plot_text(_shown([f"t{i} " for i in range(20)], list(range(20))))
    colors = [to_hex(patch.get_facecolor()) for patch in figure.axes[0].patches]
    assert colors.count("#dddddd") == 12 + 1  # and the entry in the key


def test_shown_text_comes_from_different_domains(probe_set: xr.Dataset) -> None:
    run = xr.Dataset(
        {"first_choice": (("layer", "sequence", "pos"), np.ones((1, *probe_set["token"].shape)))},
        {"layer": [1]},
    )
    shown = shown_text(run, probe_set)
    assert sorted(shown["domain"].values) == ["prose", "verse"]
    first = int(shown["sequence"][0])
    assert shown["text"].values[0, 3] == f"{int(probe_set['token'][first, 3])} "
