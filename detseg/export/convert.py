"""From a network to a file that is proven equal to it."""

from __future__ import annotations

import base64
import copy
import dataclasses
import hashlib
import importlib.metadata
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from detseg.atomic import atomic_folder, write_text
from detseg.choices import Contract
from detseg.export.artefact import Artefact, open_artefact, opened
from detseg.export.contract import DecodedRaw, ExportedNetwork, Input, output_specs, task_values
from detseg.export.format import Format, Job, Options
from detseg.export.formats import formats
from detseg.export.manifest import Manifest, crop_share, fixed_resize
from detseg.export.parity import Parity, compare
from detseg.export.quiet import quiet
from detseg.fingerprint import differences, fingerprint
from detseg.interfaces import Task
from detseg.model import Predictor
from detseg.split_execution import check_splittable, number_of_parts
from detseg.structures import Pixels
from detseg.tasks.detection import Detection


class ParityError(ArithmeticError):
    """A file that does not give what its network gives."""

    def __init__(self, message: str, parity: Parity | None = None) -> None:
        super().__init__(message)
        self.parity = parity


class Source(NamedTuple):
    """What a file is made of."""

    predictor: Predictor
    task: Task[Any, Any, Any, Any]
    name: str
    """Of the checkpoint."""
    step: int | None = None
    licence: str | None = None
    ranges: Mapping[str, Tensor] | None = None
    """Of activations, [low, high] by name, where the network was trained with `qat`."""
    fingerprint: Mapping[str, str] | None = None
    """That of the checkpoint; None where it carries none, as published weights."""
    thresholds: Mapping[str, float] | None = None
    """By class: the score from which detections are shown, where it is known."""


class Int8(NamedTuple):
    """What computes a network's raw outputs in int8, and how it was made."""

    module: nn.Module
    """float [B, 3, H, W] in 0..255 to the raw outputs, with operators that quantise and dequantise."""
    facts: Mapping[str, Any]
    """For the manifest: calibration images, layers in floating point, ranges."""


class Exported(NamedTuple):
    """What came of it."""

    path: Path
    manifest: Manifest
    parity: Parity | None
    """None where it was not compared."""
    seconds: dict[str, float]
    """What took how long."""
    megabytes: float

    @property
    def report(self) -> Path:
        """The numbers of the comparison."""
        return parity_path(self.path)


def check_options(kind: Format, options: Options, source: Source) -> None:
    """ValueError with the reason and the alternative for what a format cannot hold; nothing heavy is imported."""
    two_stages = source.predictor.head.second_stage is not None

    def contracts(one: Format) -> tuple[Contract, ...]:
        return one.two_stage_contracts if two_stages else one.contracts

    def refuse(what: str, asked: str, able: Callable[[Format], bool], instead: str = "") -> NoReturn:
        others = [one.name for one in formats().values() if able(one)]
        ways = [instead] * bool(instead) + [f"--format {' or '.join(others)}"] * bool(others)
        reason = f" ({kind.reasons[asked]})" if asked in kind.reasons else ""
        raise ValueError(f"{kind.title} files {what}{reason}: take {', or '.join(ways)}")

    if options.contract not in contracts(kind):
        if two_stages and options.contract == "raw":
            raise ValueError("a head with a second stage has no raw contract: what lies behind the raw outputs has "
                             "weights of its own; take --contract decoded or final")
        head = type(source.predictor.head).__name__
        refuse(f"cannot hold the contract {options.contract} of {head}", options.contract,
               lambda one: options.contract in contracts(one),
               f"--contract {' or '.join(contracts(kind))}" if contracts(kind) else "")
    if options.precision not in kind.precisions:
        refuse(f"have no {options.precision} weights here", options.precision,
               lambda one: options.precision in one.precisions)
    if options.pixels not in kind.pixels:
        refuse(f"take no {options.pixels} images", options.pixels, lambda one: options.pixels in one.pixels,
               f"--input {kind.pixels[0]}")
    if options.layout not in kind.layouts:
        refuse(f"take no images as {options.layout}", options.layout, lambda one: options.layout in one.layouts,
               f"--layout {kind.layouts[0]}")
    if options.dynamic_batch and not kind.dynamic_batch:
        refuse("take batches of one size", "dynamic batch", lambda one: one.dynamic_batch, "no --dynamic-batch")
    if (parts := number_of_parts(options.execution, options.parts)) is not None:
        check_splittable(source.predictor, parts)
    if options.candidates is not None and not isinstance(source.task, Detection):
        raise ValueError("--candidates is for detectors; leave it out")
    if options.candidates is not None and options.candidates < 1:
        raise ValueError(f"--candidates is at least 1, got {options.candidates}")


def export(
    source: Source, path: Path, kind: Format, options: Options, *, images: Sequence[Pixels], unchecked: bool = False,
    int8: Int8 | None = None, say: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Writes a network into a file, runs the file in its runtime and compares.

    Args:
        source: the network.
        path: where the file goes; what lies there is replaced when all went well.
        kind: the format.
        options: how it is to be.
        images: decoded ones to compare on.
        unchecked: leave the file also where it differs, or where it cannot be compared.
        int8: of the precision "int8", what computes the raw outputs; `detseg.export.int8` makes it.
        say: hears what is going on.

    ValueError for what a format cannot hold, for missing packages and for a size that the network cannot take;
    ParityError where the file differs: it is not left under its name. OSError where the folder cannot be written to.
    """
    check_options(kind, options, source)
    if (options.precision == "int8") != (int8 is not None):
        raise ValueError("an int8 file needs images to calibrate with: use detseg.export.int8.export_int8, or "
                         "detseg export --int8")
    kind.check_installed(kind.converter, to="write")
    if not unchecked:
        kind.check_installed(kind.runtime, to="compare")
        if not images:
            raise ValueError("there are no images to compare the file on; name some with --images, or insist on a file "
                             "that was not compared with --unchecked")
    if not path.name.endswith(kind.suffix):
        raise ValueError(f"{kind.title} files end in {kind.suffix}, got {path.name}")
    task, seconds, parity = _task(source.task, options), dict[str, float](), None
    rule, resize = fixed_resize(source.predictor.resize, options.size)
    with atomic_folder(path) as folder, quiet():
        unfinished = folder / path.name
        with _timed(seconds, "convert", say, f"converting to {kind.title} ({kind.minutes} usually)"):
            given = Input(resize.size, options.pixels, options.layout, options.dynamic_batch)
            network = ExportedNetwork(executed(source.predictor, options), task, contract=options.contract, given=given,
                                      int8=None if int8 is None else int8.module).eval()
            specs = output_specs(network)
            kind.write(Job(network, options.precision, tuple(output.name for output in specs)), unfinished)
            mean, std = (tuple(round(value, 9) for value in values) for values in source.predictor.normalisation)
            manifest = Manifest(
                detseg=importlib.metadata.version("detseg"), format=kind.name, contract=options.contract,
                precision=options.precision, task=task_values(task), classes=source.predictor.classes, input=given,
                resize=rule, fill=resize.fill, crop_share=crop_share(resize), mean=mean, std=std, outputs=specs,
                fingerprint=fingerprint(source.predictor, source.task),
                checkpoint={"name": source.name, "sha256": weights_digest(source.predictor), "step": source.step},
                licence=source.licence, created=date.today().isoformat(), tools=kind.versions(),
                decoding=_decoding(network) if options.contract == "raw" else None, content=kind.digest(unfinished),
                quantization=None if int8 is None else int8.facts,
                parts=number_of_parts(options.execution, options.parts), thresholds=source.thresholds)
            kind.embed(unfinished, manifest.to_json())
        if images and not kind.missing(kind.runtime):
            with _timed(seconds, "compare", say, f"comparing on {len(images)} images"):
                artefact = Artefact(unfinished, manifest, kind, opened(kind, unfinished, manifest))
                parity = compare(artefact, _reference(source.predictor), task, images)
            write_text(parity_path(path), json.dumps(parity.as_json(), indent=1) + "\n")
            if not parity.passed and not unchecked:
                raise ParityError("\n  ".join([f"{path.name} was not written: it does not give what the network gives",
                                               *parity.problems(), *parity.causes]), parity)
    return Exported(path, manifest, parity, seconds, kind.megabytes(path))


def executed(predictor: Predictor, options: Options) -> Predictor:
    """The network as a file computes it. ValueError where it cannot be split."""
    parts = number_of_parts(options.execution, options.parts)
    return predictor if parts is None else predictor.split(parts)


def check(path: Path, source: Source, images: Sequence[Pixels]) -> Parity:
    """Compares a file with the network that it should be of.

    DamagedFileError where the file was changed since it was written; ParityError where it is of another network, which
    names what is different, or gives other predictions.
    """
    artefact = open_artefact(path)
    manifest = artefact.manifest
    problems = list(_other_network(manifest, source))
    parity = compare(artefact, _reference(source.predictor), manifest.build_task(), images)
    if not parity.passed:
        problems += parity.problems() + parity.causes
    if problems:
        raise ParityError("\n  ".join([f"{path} is not {source.name}", *problems]), parity)
    return parity


def parity_path(path: Path) -> Path:
    """Where the comparison of a file is written to."""
    return path.with_name(f"{path.name}.parity.json")


def weights_digest(predictor: Predictor) -> str:
    """SHA-256 of all tensors, by name: the same for the same weights, whatever file they come from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(predictor.state_dict().items()):
        digest.update(name.encode() + str(tensor.dtype).encode() + str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _other_network(manifest: Manifest, source: Source) -> Iterator[str]:
    if difference := source.predictor.classes.difference(manifest.classes):
        yield f"it knows other classes:\n{difference}"
    elif manifest.classes.names != source.predictor.classes.names:
        yield "it has the classes in another order"
    changed = differences(manifest.fingerprint, fingerprint(source.predictor, source.task))
    if changed:
        yield "it was made with another config:"
        yield from changed[:12]
    elif manifest.checkpoint["sha256"] != weights_digest(source.predictor):
        yield f"it was made of other weights: {manifest.checkpoint['name']}"


def _task(task: Task[Any, Any, Any, Any], options: Options) -> Task[Any, Any, Any, Any]:
    if options.candidates is None or not isinstance(task, Detection):
        return task
    return dataclasses.replace(
        task, candidates=options.candidates, max_detections=min(task.max_detections, options.candidates))


def _decoding(network: ExportedNetwork) -> str:
    with torch.inference_mode():
        raw = network.predictor(network.given.unpack(network.given.example()))
        named = network(network.given.example())
    # Tensors of inference mode cannot be recorded with.
    named = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in named.items()}
    program = torch.export.export(DecodedRaw(network, raw), (named,), strict=False)
    content = io.BytesIO()
    torch.export.save(program, content)
    return base64.b64encode(content.getvalue()).decode()


def _reference(predictor: Predictor) -> Predictor:
    """A copy of the network as it was trained, on the CPU, without what only the loss uses."""
    reference = copy.deepcopy(predictor).eval().to("cpu")
    reference.head.drop_training_parts()
    return reference


@contextmanager
def _timed(seconds: dict[str, float], name: str, say: Callable[[str], None], what: str) -> Iterator[None]:
    say(what)
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started
