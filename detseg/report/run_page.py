"""A training run as one page that needs nothing else: how good it is, how it learned, what it costs.

The page is a list of sections, each made by a function of the run's facts; one that has nothing to say is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from markupsafe import Markup

from detseg.bootstrap import LEVEL, Interval
from detseg.report.html import Picture, templates
from detseg.report.inline_charts import STYLE, Line, bar_chart, line_chart
from detseg.structures import MetricTable

_NO_NUMBERS = frozenset({"kind", "step", "epoch", "seconds"})
_MOST_LINES = 6
_MOST_BARS = 40
_SETTLED = 0.01
"""A main number that changes less over the last third of the validations has levelled off."""


class ExportedFile(NamedTuple):
    """A file that was made of the run and lies in its folder."""

    name: str
    megabytes: float
    parity: Mapping[str, Any] | None
    """What its comparison with the checkpoint has written."""
    int8: Mapping[str, Any] | None
    """What the search for an int8 file within its budget has written."""


class Fact(NamedTuple):
    """A line of a table."""

    name: str
    value: str


class ClassCount(NamedTuple):
    """Objects of a class."""

    name: str
    train: int | None
    val: int | None


class Section(NamedTuple):
    """A part of the page."""

    anchor: str
    title: str
    html: Markup


class RunFacts(NamedTuple):
    """All that the page tells."""

    name: str
    main: str
    num_images: int
    """That the numbers were measured on."""
    step: int
    """Of the checkpoint."""
    numbers: Mapping[str, Interval]
    table: MetricTable
    log: Sequence[Mapping[str, Any]]
    cost: Sequence[Fact]
    files: Sequence[ExportedFile]
    data: Sequence[Fact]
    classes: Sequence[ClassCount]
    """Empty where objects cannot be counted without reading every image."""
    described: Mapping[str, Any]
    """What stands in the run's resolved.json."""
    config_text: str
    examples: Sequence[Picture]
    notes: Sequence[str]
    analysis: Sequence[Section] = ()
    """Why the numbers are what they are, where that is known; it stands behind them."""

    def validations(self) -> list[tuple[float, float]]:
        """(epoch, main number) of each, where it exists."""
        return [(one["epoch"], one[self.main]) for one in self.log
                if one["kind"] == "val" and one.get(self.main) is not None]


MakeSection: TypeAlias = Callable[[RunFacts], Section | None]


def run_page(facts: RunFacts, *, sections: Sequence[MakeSection] | None = None) -> str:
    """The page; sections: in the place of `SECTIONS`."""
    made = [section for make in (SECTIONS if sections is None else sections) if (section := make(facts)) is not None]
    made[1:1] = facts.analysis
    return templates().get_template("run_page.html").render(
        facts=facts, sections=made, verdict=verdict(facts), style=Markup(STYLE))


def verdict(facts: RunFacts) -> list[str]:
    """Three sentences: how good it is, for what, and whether training was done."""
    found = facts.numbers[facts.main]
    if math.isnan(found.value):
        return [f"There is no {facts.main}: the {facts.num_images:,} validation images show no object that could be "
                "found.", "Name data with objects.", state_of_training(facts.validations(), facts.main)]
    sure = "" if math.isnan(found.low) else (
        f"; on other images of the kind {100 * found.low:.1f} to {100 * found.high:.1f} is to be expected "
        f"({LEVEL:.0%})")
    first = (f"On {facts.num_images:,} validation images the checkpoint of step {facts.step:,} has {facts.main} "
             f"{100 * found.value:.1f}{sure}.")
    return [first, _strengths(facts), state_of_training(facts.validations(), facts.main)]


def _strengths(facts: RunFacts) -> str:
    by_class = _by_class(facts)
    parts = []
    if len(by_class) > 1:
        (best, most), *_, (worst, least) = by_class.items()
        parts.append(f"Of {len(by_class)} classes {best} does best ({100 * most.value:.1f}) and {worst} worst "
                     f"({100 * least.value:.1f})")
    elif by_class:
        parts.append(f"It knows one class, {next(iter(by_class))}")
    sizes = [(what, facts.numbers[name].value) for what, name in (("small", "APs"), ("medium", "APm"), ("large", "APl"))
             if name in facts.numbers and not math.isnan(facts.numbers[name].value)]
    if len(sizes) > 1:
        parts.append("by size, " + ", ".join(f"{what} objects have {100 * value:.1f}" for what, value in sizes))
    return ("; ".join(parts) or "No class was counted by itself") + "."


def state_of_training(validations: Sequence[tuple[float, float]], main: str) -> str:
    """Whether more epochs are worth trying, from (epoch, main number) of each validation, in a sentence."""
    if len(validations) < 3:
        return f"With {len(validations)} validations it cannot be told whether training was long enough."
    values = [value for _, value in validations]
    best = max(values)
    before = max(values[: max(1, len(values) * 2 // 3)])
    gained = 100 * (max(values[len(values) * 2 // 3 :]) - before)
    if best - values[-1] > 2 * _SETTLED:
        return (f"{main} has fallen by {100 * (best - values[-1]):.1f} since epoch "
                f"{validations[values.index(best)][0]:g}: fewer epochs, more data or more augmentation are worth "
                "a try.")
    if gained > 100 * _SETTLED:
        return (f"{main} has still risen by {gained:.1f} over the last third of the {len(values)} validations: more "
                "epochs are worth a try.")
    return (f"{main} has levelled off over the last third of the {len(values)} validations: more epochs alone promise "
            "little.")


def curves(facts: RunFacts) -> Section | None:
    """The log as charts."""
    train, val = ([one for one in facts.log if one["kind"] == kind] for kind in ("train", "val"))
    losses = [name for name in _numbers_of(train) if name == "loss" or name.startswith("loss/")]
    charts = []
    if losses:
        parts = losses if len(losses) > 2 else losses[:1]  # of one part the sum is the part
        charts.append(line_chart(_lines(train, parts[:_MOST_LINES]), title="Loss on training images", x_label="epoch"))
    if val:
        names = [facts.main, *(name for name in _numbers_of(val) if "/" not in name and name != facts.main)]
        charts.append(line_chart(_lines(val, names[:_MOST_LINES], factor=100),
                                 title="Validation, in hundredths", x_label="epoch"))
    for name, title in (("lr", "Learning rate"), ("gradient_norm", "Norm of the gradient"),
                        ("images_per_second", "Training images a second")):
        if name in _numbers_of(train):
            charts.append(line_chart(_lines(train, [name]), title=title, x_label="epoch"))
    if not charts:
        return None
    shown = [name for name in _numbers_of(val) if "/" not in name]
    rows = [[f"{one['epoch']:g}", f"{one['step']:,}", *(_cell(one.get(name)) for name in shown)] for one in val]
    return Section("curves", "How it learned", macro("curves", charts, ("epoch", "step", *shown), rows))


def scores(facts: RunFacts) -> Section:
    """Every number with its interval; the classes as a chart too."""
    by_class = _by_class(facts)
    charts, note = [], ""
    if len(by_class) > 1:
        names = [*by_class]
        if len(names) > _MOST_BARS:
            half = _MOST_BARS // 2
            names, note = [*names[:half], *names[-half:]], f"the best and the worst {half} of {len(by_class)}"
        charts.append(bar_chart({name: by_class[name] for name in names},
                                title=f"{_class_number(facts)} by class{f', {note}' if note else ''}"))
    return Section("scores", "How good it is", macro("scores", charts, *_scored(facts)))


def _scored(facts: RunFacts) -> tuple[Sequence[str], list[list[str]], Sequence[str]]:
    """The metric's own table, in hundredths; behind the name the value, and its interval where there are any."""
    with_intervals = any(not math.isnan(one.low) for one in facts.numbers.values())

    def ordered(cells: Sequence[str], found: Interval | None, place: int) -> list[str]:
        known = "" if found is None or math.isnan(found.low) else f"{100 * found.low:.1f} to {100 * found.high:.1f}"
        return [cells[0], cells[place], *([known] if with_intervals else []), *cells[1:place], *cells[place + 1 :]]

    place = next((at for at, cell in enumerate(facts.table.rows[0]) if isinstance(cell, float)), 1)
    texts = [[_cell(cell) if isinstance(cell, float) else str(cell) for cell in row] for row in facts.table.rows]
    rows = [ordered(cells + [""] * (len(facts.table.columns) - len(cells)), facts.numbers.get(cells[0]), place)
            for cells in texts]
    columns = ordered(facts.table.columns, None, place)
    if with_intervals:
        columns[2] = f"{LEVEL:.0%} interval"
    return columns, rows, facts.table.notes


def examples(facts: RunFacts) -> Section | None:
    """Validation images with what was found in them."""
    if not facts.examples:
        return None
    return Section("examples", "What it finds", macro("examples", facts.examples))


def costs(facts: RunFacts) -> Section:
    """What the network takes, and the files that were made of it."""
    rows = [[one.name, f"{one.megabytes:.1f}", _agreement(one), _int8_drop(one)] for one in facts.files]
    return Section("costs", "What it costs", macro("costs", facts.cost, rows))


def data(facts: RunFacts) -> Section:
    """What it was trained and measured on."""
    counts = [[one.name, *("-" if count is None else f"{count:,}" for count in (one.train, one.val))]
              for one in facts.classes]
    return Section("data", "The data", macro("data", facts.data, counts, facts.notes))


def settings(facts: RunFacts) -> Section:
    """Every setting and who set it, those that somebody chose first."""
    entries = facts.described["settings"]
    chosen = [[name, _plain(entry["value"]), entry["from"]] for name, entry in entries.items()
              if entry["from"] != "default"]
    defaults = [[name, _plain(entry["value"]), entry["from"]] for name, entry in entries.items()
                if entry["from"] == "default"]
    versions = [[name, version] for name, version in facts.described["versions"].items()]
    return Section("settings", "The configuration", macro(
        "settings", facts.described["config"], chosen, defaults, versions, facts.config_text,
        facts.described["start"]))


SECTIONS: tuple[MakeSection, ...] = (scores, examples, curves, costs, data, settings)
"""In the order of the page."""


def macro(name: str, *values: object) -> Markup:
    """A part of the page by the macro of this name."""
    return Markup(getattr(templates().get_template("run_sections.html").module, name)(*values))


def _by_class(facts: RunFacts) -> dict[str, Interval]:
    """The main number of each class that has one, best first."""
    prefix = f"{_class_number(facts)}/"
    found = {name.removeprefix(prefix): one for name, one in facts.numbers.items()
             if name.startswith(prefix) and not math.isnan(one.value)}
    return dict(sorted(found.items(), key=lambda item: -item[1].value))


def _class_number(facts: RunFacts) -> str:
    """What the main number is called of a class, as in "IoU/road"."""
    return next((name.partition("/")[0] for name in facts.numbers if "/" in name), facts.main)


def _numbers_of(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of numbers that exist anywhere, in order."""
    names = dict.fromkeys(name for one in records for name, value in one.items()
                          if name not in _NO_NUMBERS and isinstance(value, int | float))
    return [*names]


def _lines(records: Sequence[Mapping[str, Any]], names: Sequence[str], *, factor: float = 1.0) -> dict[str, Line]:
    lines = {}
    for name in names:
        points = [(one["epoch"], factor * one[name]) for one in records if one.get(name) is not None]
        if points:
            lines[name] = Line([x for x, _ in points], [y for _, y in points])
    return lines


def _cell(value: Any) -> str:
    """In hundredths; a dash for a number that does not exist."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _plain(value: Any) -> str:
    return ", ".join(f"{part:g}" for part in value) if isinstance(value, list) else str(value)


def _agreement(one: ExportedFile) -> str:
    """What a file's comparison with the checkpoint gave."""
    if one.parity is None:
        return "not compared"
    share = one.parity["predictions"]["share"]
    word = "passed" if one.parity["passed"] else "DIFFERS"
    return f"{word}: {share:.1%} of the predictions the same on {one.parity['images']} images"


def _int8_drop(one: ExportedFile) -> str:
    if one.int8 is None or one.int8.get("drop") is None:
        return ""
    return f"{one.int8['metric']} {100 * one.int8['artefact']:.1f}, {one.int8['drop']:.1f} points below the checkpoint"
