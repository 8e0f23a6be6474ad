"""Source code for an app around one exported file: a picture to what the file takes, what it gives to the picture.

Everything in it is of the file's manifest: names, shapes, types, the resize and the way back, classes, their colours
and the scores from which they are shown. What is written is a `Target`; its texts lie in `apps/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from detseg.export.app_targets import TARGETS, Target, target_named
from detseg.export.artefact import read_manifest
from detseg.export.manifest import Manifest
from detseg.resize import TensorFlowStretch

VERSIONS: Mapping[str, str] = {
    "litert": "2.3.0", "executorch": "1.5.1", "onnxruntime-android": "1.30.0", "onnxruntime-node": "1.30.0",
    "onnxruntime-web": "1.30.0"}
"""Of the runtimes that the code is written for."""


def targets_for(manifest: Manifest, *, what: str, name: str | None = None) -> tuple[Target, ...]:
    """Those that run a file, or the one that was asked for.

    ValueError for a file that does not end with final predictions, for one that no target runs, and for a target that
    runs other files; `what` names the file.
    """
    wanted = None if name is None else target_named(name)
    fitting = tuple(target for target in TARGETS if target.format == manifest.format)
    if not fitting:
        raise ValueError(f"there is no app code for {manifest.format} files such as {what}; export with --format "
                         f"{' or '.join(sorted({target.format for target in TARGETS}))}")
    if wanted is not None and wanted not in fitting:
        raise ValueError(f"{wanted.name} runs {wanted.format} files, {what} is of {manifest.format}: take --target "
                         f"{' or '.join(target.name for target in fitting)}, or a file of detseg export RUN --format "
                         f"{wanted.format}")
    if manifest.task["kind"] == "classification":
        raise ValueError(f"there is no app code for classifiers such as {what}; what it takes and gives stands in its "
                         "manifest")
    if manifest.resize == "centre_crop":
        raise ValueError(f"{what} sees the middle of a picture, and there is no app code for such a crop; give the "
                         "config's model a Stretch or a Letterbox")
    if manifest.contract != "final":
        raise ValueError(f"{what} ends with {manifest.contract} predictions, and app code reads final ones: write it "
                         f"again with detseg export RUN --format {manifest.format} --contract final")
    return fitting if wanted is None else (wanted,)


def app_code(path: Path, *, target: str | None = None) -> dict[str, dict[str, str]]:
    """The texts for an exported file: by target, by file name. Errors as of `read_manifest` and `targets_for`."""
    _, manifest = read_manifest(path)
    return {one.name: source(manifest, one, file=path.name)
            for one in targets_for(manifest, what=str(path), name=target)}


def source(manifest: Manifest, target: Target, *, file: str) -> dict[str, str]:
    """The texts of a target by file name; `file` is what the exported file is called in the app."""
    values = _values(manifest, file)
    made = {}
    for name, template in target.templates.items():
        name = name.format(kind=values["kind"])
        proof = target.proof_of(name)
        made[name] = _templates().get_template(template).render(
            values, proof=proof, header=lambda mark, proof=proof: _header(manifest, target, file, mark, proof))
    return made


def takes(manifest: Manifest) -> str:
    """What a file takes, in words."""
    given = manifest.input
    shape = ["B" if given.dynamic_batch else 1, *given.shape[1:]]
    return f"images {str(given.dtype).removeprefix('torch.')} [{', '.join(map(str, shape))}] RGB"


def gives(manifest: Manifest) -> str:
    """What a file gives, in words; Core ML has no bytes."""
    def dtype(name: str) -> str:
        return "int32" if manifest.format == "coreml" and name == "uint8" else name

    def shape(sizes: tuple[int, ...]) -> str:
        return ", ".join("B" if size < 0 else str(size) for size in sizes)

    return ", ".join(f"{one.name} {dtype(one.dtype)} [{shape(one.shape)}]" for one in manifest.outputs)


def _values(manifest: Manifest, file: str) -> dict[str, Any]:
    """What the texts are made with."""
    given, classes = manifest.input, manifest.classes
    outputs = {output.name: output for output in manifest.outputs}
    detector = manifest.task["kind"] == "detection"
    assert outputs.keys() == ({"boxes", "scores", "labels", "count"} if detector else {"labels"}), outputs
    height, width = given.size
    pixels = "bytes, rounded" if given.pixels == "uint8" else "floats of 0 to 255, not rounded"
    return {
        "file": _one_line(file), "file_name": file, "stem": _one_line(Path(file).stem), "detector": detector,
        "kind": "Detector" if detector else "Segmenter", "stretch": manifest.resize != "letterbox",
        "points": isinstance(manifest.resize_rule, TensorFlowStretch),
        "fill": manifest.fill, "uint8": given.pixels == "uint8", "nhwc": given.layout == "nhwc", "height": height,
        "width": width, "shape": given.shape, "outputs": {name: k for k, name in enumerate(outputs)},
        "rows": outputs["boxes"].shape[1] if detector else 0, "names": ", ".join(f'"{name}"' for name in outputs),
        "given": f"The picture as the file takes it: [{', '.join(map(str, given.shape))}], RGB, {pixels}.",
        "versions": VERSIONS,
        "classes": [
            {"name": name, "id": source_id, "colour": colour, "hex": "{:02X}{:02X}{:02X}".format(*colour),
             "threshold": float(threshold)}
            for name, source_id, colour, threshold in zip(
                classes.names, classes.source_ids, classes.colours, classes.thresholds(manifest.thresholds),
                strict=True)],
    }


def _header(manifest: Manifest, target: Target, file: str, mark: str, proof: str) -> str:
    """The comment that every text begins with."""
    lines = [
        f"{target.title}. Written by detseg app-code for {_one_line(file)},",
        f"made of {_one_line(manifest.checkpoint['name'])} by detseg {_one_line(manifest.detseg)}.",
        f"Code of this kind is {proof}.",
        f"The file takes {takes(manifest)}",
        f"and gives {gives(manifest)}."]
    return "\n".join(f"{mark} {line}" for line in [*lines, ""]).rstrip(" ")


def _one_line(text: object) -> str:
    """For a comment."""
    return " ".join(str(text).split())


_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _literal(text: str, language: str) -> str:
    """A text between quotes, as a language writes it."""
    def letter(one: str) -> str:
        if one in _ESCAPES:
            return _ESCAPES[one]
        if language == "kotlin" and one == "$":
            return "\\$"
        if one.isprintable() or (ord(one) > 0x7F and language == "cpp"):
            return one
        return {"cpp": f"\\{ord(one):03o}", "swift": f"\\u{{{ord(one):X}}}"}.get(language) or "".join(
            f"\\u{unit:04x}" for unit in memoryview(one.encode("utf-16-le", "surrogatepass")).cast("H"))

    return f'"{"".join(map(letter, text))}"'


def _templates() -> jinja2.Environment:
    """Marks that none of the languages has."""
    known = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "apps"), undefined=jinja2.StrictUndefined,
        variable_start_string="@{", variable_end_string="}@", line_statement_prefix="%%", block_start_string="@%",
        block_end_string="%@", comment_start_string="@#", comment_end_string="#@", keep_trailing_newline=True,
        autoescape=False)
    known.filters["literal"] = _literal
    return known
