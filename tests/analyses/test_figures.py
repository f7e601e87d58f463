import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from analyses.reporting import figures, heatmap


def _axes():
    figure = figures.new_figure(width=3, height=2)
    return figure, figure.subplots()


def test_arms_of_a_study_have_colours_of_their_own() -> None:
    arms = ("dense", "dense_112", "switch", "ungated", "hash")
    assert len({figures.arm_color(arm) for arm in arms}) == len(arms)
    assert figures.arm_color("something new") == figures.arm_color("something new")


def test_step_zero_is_shown() -> None:
    with figures.style():
        _, ax = _axes()
        figures.step_axis(ax, [0, 1, 450])
    low, high = ax.get_xlim()
    assert low < 0
    assert high > 450
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0", "1", "10", "100"]


def test_axis_label_is_long_name_and_unit() -> None:
    loss = xr.DataArray(1.0, attrs={"long_name": "mean loss", "units": "nat"})
    assert figures.axis_label(loss) == "mean loss (nat)"
    assert figures.axis_label(loss.assign_attrs(units="1")) == "mean loss"


@pytest.mark.parametrize("name", ["$\\frac{$", "a$b$c", "_hidden", "<b>&", "\x1b[31m", "書"])
def test_any_name_can_be_drawn(name: str) -> None:
    with figures.style():
        figure, ax = _axes()
        ax.plot([0, 1], [0, 1])
        figures.panel_title(ax, name, name)
        ax.set_xticks([0, 1], [figures.label(name)] * 2)
        figure.legend(handles=figures.arm_handles([name]))
    assert b"<svg" in figures.rendered(figure, suffix="svg")


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_same_figure_gives_the_same_bytes(suffix: str) -> None:
    def draw() -> bytes:
        with figures.style():
            figure, ax = _axes()
            ax.plot([0, 1, 10], [1, 2, 3], marker="o")
            figures.step_axis(ax, [0, 10])
        return figures.rendered(figure, suffix=suffix)

    assert draw() == draw()


def test_style_leaves_no_trace() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    with figures.style():
        assert matplotlib.rcParams["svg.hashsalt"] == "twinlens"
    assert dict(matplotlib.rcParams) == before


def test_cells_show_percent_in_the_given_order() -> None:
    shares = np.array([[0.25, 0.5], [0.0, 1.0]])
    norm = heatmap.diverging_norm(shares, centre=0.25)
    _, ax = _axes()
    heatmap.draw_percent(
        ax, [shares[:, :1], shares], norm, rows=["a", "b"], columns=["x", "y", "z"]
    )
    assert [text.get_text() for text in ax.texts] == ["25", "0", "25", "50", "0", "100"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b"]
    assert norm(0.25) == 0.5


def test_drawing_needs_no_pyplot() -> None:
    program = (
        "import sys; from analyses.reporting import figures\n"
        "figure = figures.new_figure(width=2, height=2); figure.subplots()\n"
        "figures.rendered(figure, suffix='png')\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_figure_shows_itself_as_its_report_has_it() -> None:
    figure, ax = _axes()
    ax.plot([0, 1], [0, 1])
    picture, size = figure._repr_png_()
    assert picture.startswith(b"\x89PNG")
    assert size == {"width": 288, "height": 192}
    again, _ = _axes()
    again.axes[0].plot([0, 1], [0, 1])
    assert picture == figures.rendered(again, suffix="png")


def test_a_figure_that_was_shown_still_lays_itself_out() -> None:
    figure, ax = _axes()
    figure._repr_png_()
    before = ax.get_position().x0
    ax.set_ylabel("a\nlong\nlabel")
    figure._repr_png_()
    assert ax.get_position().x0 > before + 0.05


def test_ipython_shows_a_figure_by_itself_and_in_its_own_way_where_it_has_one() -> None:
    from matplotlib.figure import Figure

    formatters = pytest.importorskip("IPython.core.formatters")
    display, (figure, _) = formatters.DisplayFormatter(), _axes()
    shown, _ = display.format(figure)
    assert shown.keys() == {"image/png", "text/plain"}
    # as `%matplotlib inline` does
    display.formatters["image/png"].for_type(Figure, lambda figure: b"in its own way")
    shown, _ = display.format(figure)
    assert shown["image/png"] == b"in its own way"
