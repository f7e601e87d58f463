"""A figure that a notebook shows without being told how.

IPython shows matplotlib's own figures only after `%matplotlib inline`, or once pyplot has made one.
A figure that renders itself needs neither. Where IPython has a way of its own to show figures, that
one is taken instead, and as pyplot does not know the figure, it is shown once either way.
"""

from matplotlib.figure import Figure

from analyses.reporting.figures import rendered

_PIXELS_PER_INCH = 96  # of CSS, whatever the resolution of the picture


class ShownFigure(Figure):
    """A figure that is the output of a cell where it is the cell's last value."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """The picture as reports have it, and the size to show it at."""
        layout = self.get_layout_engine()
        picture = rendered(self, suffix="png")
        self.set_layout_engine(layout)  # what is added to the figure later finds its place, too
        width, height = (round(inches * _PIXELS_PER_INCH) for inches in self.get_size_inches())
        return picture, {"width": width, "height": height}
