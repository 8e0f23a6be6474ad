"""Whether one network, or one recipe, is better than another, in words that hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as student

from detseg.bootstrap import LEVEL, Interval, Samples, interval
from detseg.structures import MetricTable


class Measured(NamedTuple):
    """A network's numbers, and what they were on each draw of the images."""

    name: str
    numbers: Mapping[str, float]
    samples: Samples
    recipe: str
    """Networks of one recipe differ in their seed alone."""

    def interval(self, number: str) -> Interval:
        """Of a number; it holds for these weights on other images."""
        return interval(self.numbers[number], self.samples[number])


class Between(NamedTuple):
    """Two recipes."""

    first: tuple[str, ...]
    """The names of the networks of the recipe that is compared with."""
    other: tuple[str, ...]
    difference: Interval
    """Of the means of the main number, other less first."""
    with_seeds: bool
    """Whether the interval counts that another seed gives another number; that takes a recipe with two networks."""


class Comparison(NamedTuple):
    """Networks measured on the same images; each is compared with the first."""

    main: str
    num_images: int
    networks: tuple[Measured, ...]

    def difference(self, other: Measured, number: str) -> Interval:
        """Of a number, `other` less the first, on the same draws."""
        first = self.networks[0]
        return interval(other.numbers[number] - first.numbers[number], other.samples[number] - first.samples[number])

    def recipes(self) -> list[tuple[Measured, ...]]:
        """The networks by recipe, in the order in which they were named."""
        found: dict[str, list[Measured]] = {}
        for one in self.networks:
            found.setdefault(one.recipe, []).append(one)
        return [tuple(group) for group in found.values()]

    def between(self) -> list[Between]:
        """Every other recipe against the first one's."""
        first, *others = groups = self.recipes()
        spread = _seed_variance([[one.numbers[self.main] for one in group] for group in groups])
        return [self._between(first, other, spread) for other in others]

    def _between(
        self, first: Sequence[Measured], other: Sequence[Measured], spread: tuple[float, int] | None
    ) -> Between:
        value = float(np.mean([one.numbers[self.main] for one in other])
                      - np.mean([one.numbers[self.main] for one in first]))
        samples = (np.mean([one.samples[self.main] for one in other], axis=0)
                   - np.mean([one.samples[self.main] for one in first], axis=0))
        names = tuple(one.name for one in first), tuple(one.name for one in other)
        if spread is None:
            return Between(*names, interval(value, samples), with_seeds=False)
        variance, freedom = spread
        of_seeds = variance * (1 / len(first) + 1 / len(other))
        of_images = float(np.nanvar(samples, ddof=1))
        # Satterthwaite's degrees of freedom for a sum of two variances.
        total = of_seeds + of_images
        parts = of_seeds ** 2 / freedom + of_images ** 2 / (self.num_images - 1)
        reach = float(student.ppf((1 + LEVEL) / 2, total ** 2 / parts)) * math.sqrt(total) if parts > 0 else 0.0
        return Between(*names, Interval(value, value - reach, value + reach), with_seeds=True)

    def verdicts(self) -> list[str]:
        """A line for every other recipe, and one for each recipe that has several networks."""
        between = self.between()
        lines = [f"{_listed(one.other)} against {_listed(one.first)}: {verdict(one.difference, self.main)}"
                 for one in between]
        for group in self.recipes():
            if len(group) > 1:
                values = [f"{100 * one.numbers[self.main]:.1f}" for one in group]
                lines.append(f"{_listed([one.name for one in group])} are one recipe with {len(group)} seeds "
                             f"({self.main} {_listed(values)}): no verdict between them")
        if any(one.with_seeds for one in between):
            lines.append("note: the verdicts count what other images and other seeds give")
        elif between:
            lines.append("note: the verdicts are on these weights and count what other images give; name two seeds of "
                         "a recipe to count those too")
        return lines

    def table(self) -> MetricTable:
        """Every number with its interval, and what each network differs by from the first: two side by side, more
        below each other."""
        first, *others = self.networks
        apart = {(other.name, number): self.difference(other, number)
                 for other in others for number in self._numbers()}
        rows: list[tuple[str, ...]] = []
        ends = []
        for number in self._numbers():
            cells = [(one.name, in_hundredths(one.interval(number)), _starred(apart.get((one.name, number))))
                     for one in self.networks]
            if len(others) == 1:
                rows.append((number, cells[0][1], *cells[1][1:]))
            else:
                rows += [("" if row else number, *cell) for row, cell in enumerate(cells)]
                ends.append(len(rows) - 1)
        official = sum("/" not in number for number in self._numbers())
        columns = ("measure", first.name, others[0].name, f"less {first.name}") if len(others) == 1 else (
            "measure", "of", "value", f"less {first.name}")
        clear, all_of_them = sum(_is_clear(one) for one in apart.values()), len(apart)
        return MetricTable(columns, tuple(rows), sections=tuple(ends) or (official - 1,), notes=(
            f"in hundredths; in brackets {LEVEL:.0%} of {len(next(iter(first.samples.values()))):,} draws of the "
            f"{self.num_images} images",
            f"*: the interval leaves out 0 ({clear} of {all_of_them}; where nothing differs, one of 20 does so by "
            "chance)"))

    def _numbers(self) -> list[str]:
        """Those that were resampled: the official ones, then the classes, the first network's best first."""
        first = self.networks[0]
        names = [name for name in first.samples if all(name in one.samples for one in self.networks)]
        by_class = sorted((name for name in names if "/" in name),
                          key=lambda name: (math.isnan(first.numbers[name]), -first.numbers[name], name))
        return [name for name in names if "/" not in name] + by_class

    def as_json(self) -> dict[str, Any]:
        """Plain values; None where a number does not exist."""
        first = self.networks[0]
        return {
            "main": self.main, "images": self.num_images, "level": LEVEL, "verdicts": self.verdicts(),
            "recipes": [{"first": one.first, "other": one.other, "difference": _plain(one.difference),
                         "with_seeds": one.with_seeds} for one in self.between()],
            "networks": [{
                "name": one.name,
                "numbers": {number: _plain(one.interval(number)) for number in self._numbers()},
                "difference": None if one is first else {
                    number: _plain(self.difference(one, number)) for number in self._numbers()},
            } for one in self.networks]}


def verdict(difference: Interval, number: str) -> str:
    """What a difference and its interval say, in hundredths."""
    text = f"{in_hundredths(difference, sign=True)} {number}"
    if math.isnan(difference.low):
        return f"nothing to compare: there is no {number}"
    if difference.low > 0:
        return f"better: {text}"
    return f"worse: {text}" if difference.high < 0 else f"no difference shown: {text}"


def in_hundredths(found: Interval, *, sign: bool = False) -> str:
    """An interval for people, as in "45.2 [43.3, 47.7]"; a dash for a number that does not exist."""
    if math.isnan(found.value) or math.isnan(found.low):
        return "-"
    value, low, high = (round(100 * part, 1) + 0.0 for part in found)  # + 0.0: no -0.0
    return f"{value:{'+' if sign else ''}.1f} [{low:.1f}, {high:.1f}]"


def _is_clear(difference: Interval) -> bool:
    return difference.low > 0 or difference.high < 0


def _starred(difference: Interval | None) -> str:
    return "" if difference is None else in_hundredths(difference, sign=True) + "*" * _is_clear(difference)


def _seed_variance(groups: Sequence[Sequence[float]]) -> tuple[float, int] | None:
    """The variance of a number over the seeds of a recipe, the same for all, and its degrees of freedom; None where
    every recipe has one network. Measured on the same images, it holds a part of the images' variance too, which is
    then counted twice: the interval is rather too wide."""
    freedom = sum(len(group) - 1 for group in groups)
    if not freedom:
        return None
    squares = sum(float(((np.array(group) - np.mean(group)) ** 2).sum()) for group in groups)
    return squares / freedom, freedom


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _plain(found: Interval) -> dict[str, float | None]:
    return {name: None if math.isnan(part) else part for name, part in found._asdict().items()}
