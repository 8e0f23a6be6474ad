"""The table of what was exported, run and compared: heads x formats, for each contract."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from detseg import config as configs
from detseg.benchmark import synthetic
from detseg.choices import CONTRACTS, Contract
from detseg.config import Config
from detseg.export.convert import ParityError, Source, check_options, export
from detseg.export.format import Format
from detseg.export.parity import Parity
from detseg.model import Predictor
from detseg.recipes import sample_pictures

START, END = "<!-- detseg format-table -->", "<!-- end of the table -->"
"""What stands around the table in a document."""


class Cell(NamedTuple):
    """What came of one file."""

    head: str
    format: str
    contract: Contract
    text: str
    """By how much it differs from the network, or "no"."""
    reason: str = ""
    """Why not."""


def cells(
    paths: Sequence[Path], formats: Sequence[Format], overrides: Sequence[str], *, images: int, candidates: int,
    say: Callable[[str], None],
) -> Iterator[Cell]:
    """Exports every config's head, with synthetic weights, on one convolution for each tap of its backbone, in every
    format and contract, and compares. A converter's time goes with the number of layers.

    Args:
        paths: configs, one of each head.
        formats: to export to.
        overrides: of each config that has such settings, as `--set` takes them.
        images: to compare on.
        candidates: of detectors: boxes that enter suppression.
        say: hears what is going on.
    """
    for path in paths:
        known = configs.load(path).entries()
        config = configs.load(path, [text for text in overrides if text.partition("=")[0] in known])
        predictor = small_predictor(config)
        head = f"{type(predictor.head).__name__} (`{path.stem}`)"
        source = Source(predictor, config.experiment.task, "synthetic weights")
        for contract in CONTRACTS:
            for kind in formats:
                say(f"{path.stem}: {kind.title}, {contract}")
                yield _cell(head, source, kind, contract, images=images, candidates=candidates)


def small_predictor(config: Config) -> Predictor:
    """A config's head on one convolution for each tap, whose activations and scores are like a trained one's; the same
    whatever was drawn before."""
    torch.manual_seed(0)
    predictor = config.build_model(config.experiment.classes).eval()
    predictor.backbone = synthetic.OneConvolution(predictor.backbone.specs)
    task, picture = config.experiment.task, sample_pictures(1)[0]
    synthetic.enliven(predictor, (picture.shape[0], picture.shape[1]))
    if task.scored:
        synthetic.lower_scores(predictor, picture, 0.01, threshold=task.score_threshold)
    return predictor


def _cell(head: str, source: Source, kind: Format, contract: Contract, *, images: int, candidates: int) -> Cell:
    options = replace(kind.usual_options(), contract=contract, candidates=candidates if source.task.scored else None)
    try:
        check_options(kind, options, source)
    except ValueError as error:
        reason = f"{kind.title}: {kind.reasons[contract]}" if contract in kind.reasons else str(error)
        return Cell(head, kind.name, contract, "no", reason)
    with tempfile.TemporaryDirectory() as folder:
        try:
            exported = export(
                source, Path(folder) / f"x{kind.suffix}", kind, options, images=sample_pictures(images))
        except ParityError as error:
            return Cell(head, kind.name, contract, "**differs**", " ".join(str(error).split()))
        except Exception as error:  # each converter has its own
            cause = error.__cause__ or error  # without the name of a file that is gone
            return Cell(head, kind.name, contract, "**fails**", f"{kind.title}: {str(cause).splitlines()[0]}")
    assert exported.parity is not None
    return Cell(head, kind.name, contract, _difference(exported.parity))


def _difference(parity: Parity) -> str:
    """Of the outputs, relative to the largest of each; of final predictions, the share that is the same."""
    if not parity.outputs:
        return f"{100 * parity.predictions.share:.5g} %"
    return f"{max(one.largest / max(one.magnitude, 1e-12) for one in parity.outputs.values()):.0e}"


def markdown(found: Sequence[Cell], formats: Sequence[Format]) -> str:
    """A table for each contract between START and END, and why what is not there is not."""
    reasons: list[str] = []
    lines = [START]
    for contract in CONTRACTS:
        lines += ["", f"`{contract}`", "", f"| head | {' | '.join(kind.title for kind in formats)} |",
                  "|--" * (len(formats) + 1) + "|"]
        for head in dict.fromkeys(cell.head for cell in found):
            row = [head]
            for kind in formats:
                (cell,) = (cell for cell in found if (cell.head, cell.format, cell.contract) == (
                    head, kind.name, contract))
                text = cell.text
                if cell.reason:
                    if cell.reason not in reasons:
                        reasons.append(cell.reason)
                    text += f" ({reasons.index(cell.reason) + 1})"
                row.append(text)
            lines.append(f"| {' | '.join(row)} |")
    lines += ["", *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1)), "", END]
    return "\n".join(lines)
