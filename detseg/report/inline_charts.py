"""Charts that are a part of a page, drawn by matplotlib as SVG.

A page with them needs no script to be read, on a phone, in print or in a mail program's preview, and is some tens of
kilobytes long: Bokeh would add 1 MB to each, Plotly 4.7. Colours are the page's own, so that they follow it into the
dark.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from detseg.bootstrap import Interval

STYLE = """
:root { --c0: #0b6bcb; --c1: #b8500a; --c2: #1a7f37; --c3: #8a3ffc; --c4: #b3123f; --c5: #5c6670; }
@media screen and (prefers-color-scheme: dark) {
  :root { --c0: #6cb6ff; --c1: #ffa657; --c2: #6bc46d; --c3: #c297ff; --c4: #ff8fa3; --c5: #aab4bd; } }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); gap: 1rem; }
.chart svg { width: 100%; height: auto; display: block; }
.chart svg text { font-family: system-ui, sans-serif !important; }
"""
"""Of the page that they stand in; after that of `base.html`."""

_TEXT, _FAINT, _LINE = "#010203", "#020304", "#030405"
_COLOURS = tuple(f"#04050{number}" for number in range(6))
_VARIABLES = {_TEXT: "text", _FAINT: "faint", _LINE: "line", **{
    colour: f"c{number}" for number, colour in enumerate(_COLOURS)}}
"""Colours that nobody takes, in whose place the page's variables are put."""
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
"""Lines differ by more than their colour."""
_WIDTH, _HEIGHT, _BAR = 4.6, 2.9, 0.26
"""Inches: of a chart, and the height of a bar."""


class Line(NamedTuple):
    """Points, from left to right."""

    x: Sequence[float]
    y: Sequence[float]
    mark: tuple[float, float] | None = None
    """A point that stands out; one that is NaN is not drawn."""

    def marked(self) -> bool:
        """Whether there is such a point."""
        return self.mark is not None and not any(map(math.isnan, self.mark))


def line_chart(lines: Mapping[str, Line], *, title: str, x_label: str, log: bool = False) -> Markup:
    """Lines over one axis, the most important first; up to six.

    log: whether the other axis is logarithmic, of numbers above 0.
    """
    assert len(lines) <= len(_COLOURS), list(lines)
    said = "; ".join(f"{name} from {line.y[0]:.3g} to {line.y[-1]:.3g}" + (
        "" if line.mark is None or not line.marked() else f", marked: {line.mark[1]:.3g} at {line.mark[0]:.3g}")
        for name, line in lines.items() if len(line.y))
    with _figure(_HEIGHT) as (figure, axes):
        for (name, line), colour, dashes in zip(lines.items(), _COLOURS, _DASHES, strict=False):
            axes.plot(line.x, line.y, label=name, color=colour, linestyle=dashes, linewidth=1.6,
                      marker="o" if len(line.x) <= 30 else None, markersize=3)
            if line.mark is not None and line.marked():
                axes.plot(*([at] for at in line.mark), color=colour, marker="o", markersize=6)
        if log:
            axes.set_yscale("log")
        axes.set_xlabel(x_label)
        if len(lines) > 1:
            figure.legend(loc="outside upper left", ncols=min(len(lines), 3), frameon=False, labelcolor=_TEXT)
        return _markup(figure, title, f"{title} over {x_label}: {said}")


def bar_chart(values: Mapping[str, Interval], *, title: str, most: float | None = 1.0) -> Markup:
    """A bar for each number from 0 to 1, in hundredths, with its interval as a whisker where it has one; from the top
    down. most: where the axis ends; None is a little beyond the largest."""
    names = [*values]
    said = "; ".join(f"{name} {100 * one.value:.1f}" for name, one in values.items())
    with _figure(0.75 + _BAR * len(names)) as (figure, axes):
        for row, one in enumerate(values.values()):
            axes.barh(row, 100 * one.value, height=0.68, color=_COLOURS[0])
            if one.low == one.low:
                axes.plot([100 * one.low, 100 * one.high], [row, row], color=_TEXT, linewidth=1.2, marker="|",
                          markersize=5)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        largest = max((one.value for one in values.values()), default=0.0)
        axes.set_xlim(0, 100 * (most or max(1.1 * largest, 0.01)))
        axes.grid(axis="y", visible=False)
        return _markup(figure, title, f"{title}: {said}")


@contextmanager
def _figure(height: float) -> Iterator[tuple[Any, Any]]:
    # They take a second to import, which only a page should wait for.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    look: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": "", "font.size": 9, "text.color": _TEXT, "axes.edgecolor": _LINE,
        "axes.labelcolor": _FAINT, "xtick.color": _FAINT, "ytick.color": _FAINT, "grid.color": _LINE,
        "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
        "legend.fontsize": 8, "text.parse_math": False}
    with rc_context(look):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        axes.tick_params(length=0)
        yield figure, axes


def _markup(figure: Any, title: str, description: str) -> Markup:
    """The figure's SVG, with its title as the page's text above and a description for who does not see it."""
    content = io.StringIO()
    figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = content.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg[svg.index("<svg"):], flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    # Names of parts must differ from those of the page's other charts.
    mine = f"c{hashlib.sha256(svg.encode()).hexdigest()[:8]}-"
    svg = re.sub(r'\bid="', f'id="{mine}', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{mine}", svg)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(description)}" ', 1)
    return Markup('<figure class="chart"><h3>{}</h3>{}</figure>').format(title, Markup(svg))
