"""Line charts, drawn by matplotlib; files that are complete or not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from detseg.atomic import atomic_write

SUFFIXES = (".png", ".svg", ".pdf")
"""Of pictures that can be written."""

_MARKS_PAD = 72.0
"""Points between the axes and a title above the names of marks."""
_WIDTH, _HEIGHT = 7.0, 4.6
"""Inches of a panel, of 110 pixels each."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Lines over one axis.

    Args:
        title, x_label, y_label: what stands above, below and beside.
        x: of every point; logarithmic above 1, linear below, so that 0 has a place.
        lines: the values of each by name, as many as there are points.
        log: whether the other axis is logarithmic.
        marks: vertical lines by name.
    """

    title: str
    x_label: str
    y_label: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[float]]
    log: bool = False
    marks: Mapping[str, float] = field(default_factory=dict)


def check_suffix(path: Path) -> None:
    """ValueError where no chart can be written under this name."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"a chart is a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file, got {path}; name it "
                         f"{path.with_suffix('.png')}")


def write_chart(path: Path, rows: Sequence[Sequence[Panel]]) -> None:
    """Writes rows of panels as one picture in the format that the suffix of `path` names, making its folder. All panels
    have lines of the same names, which the picture explains once.

    On failure (an OSError that names `path`) whatever was there before stays. Another suffix is a ValueError.
    """
    from matplotlib.figure import Figure  # takes a second to import, which only a picture should wait for
    from matplotlib.ticker import FuncFormatter

    check_suffix(path)
    figure = Figure(figsize=(_WIDTH * max(map(len, rows)), _HEIGHT * len(rows)), dpi=110, layout="constrained",
                    facecolor="white")
    grid = figure.subplots(len(rows), max(map(len, rows)), squeeze=False)
    for row, axes_of_row in zip(rows, grid, strict=True):
        for panel, axes in zip(row, axes_of_row, strict=True):
            for name, values in panel.lines.items():
                axes.plot(panel.x, values, label=name, linewidth=1.8)
            axes.set_xscale("symlog", linthresh=1.0)
            axes.set_xlim(min(panel.x), max(panel.x))
            ticks = [tick for tick in (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if tick <= max(panel.x)]
            axes.set_xticks(ticks, [f"{tick}" for tick in ticks], minor=False)
            axes.minorticks_off()
            if panel.log:
                axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
            axes.set(xlabel=panel.x_label, ylabel=panel.y_label)
            axes.set_title(panel.title, pad=_MARKS_PAD if panel.marks else None)
            axes.grid(color="0.88")
            axes.set_axisbelow(True)
            for name, place in panel.marks.items():
                axes.axvline(place, color="0.55", linewidth=1.0, linestyle=":")
                axes.annotate(name, (place, 1.01), xycoords=("data", "axes fraction"), rotation=60, fontsize=8,
                              color="0.35", ha="left", va="bottom")
    handles, names = grid[0][0].get_legend_handles_labels()  # of all panels: they have the same lines
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 4), frameon=False)
    with atomic_write(path, failure="the chart was not written") as unfinished:
        figure.savefig(unfinished, format=path.suffix[1:].lower())
