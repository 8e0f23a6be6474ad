"""The code blocks of docs/: app code for example files, written between marks, so that pages cannot drift from it.

A block stands between `<!-- app_code TARGET detection|segmentation FILE -->` and `<!-- end -->`. Two more kinds are
`<!-- app_code targets -->`, the table of all, and `<!-- app_code facts detection|segmentation -->`, an example's input,
outputs and classes.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from detseg import __version__, config
from detseg.data.sample import CATEGORIES, LABELS
from detseg.export.app_code import gives, source, takes
from detseg.export.app_targets import NOT_RUN, TARGETS, target_named
from detseg.export.contract import ExportedNetwork, Input, output_specs, task_values
from detseg.export.formats import format_named
from detseg.export.manifest import Manifest, fixed_resize
from detseg.structures import Classes

EXAMPLES = {"detection": "ssdlite_v3_large", "segmentation": "lraspp_v3_small"}
"""The configs of the example files, with the generated sample's classes: `detseg train NAME --sample`."""

_BLOCK = re.compile(r"(<!-- app_code (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
_LANGUAGES = {
    ".kt": "kotlin", ".swift": "swift", ".cpp": "cpp", ".h": "cpp", ".txt": "cmake", ".mjs": "js", ".json": "json"}


def write_docs(folder: Path, *, configs: Path) -> list[Path]:
    """Fills every block of the pages in a folder, and gives the pages that changed."""
    changed = []
    for path in sorted(folder.rglob("*.md")):
        text = path.read_text("utf-8")
        if (filled := fill(text, configs=configs)) != text:
            path.write_text(filled, "utf-8")
            changed.append(path)
    return changed


def fill(text: str, *, configs: Path) -> str:
    """A page with every block as it should be. ValueError for a block that nothing is known of."""
    return _BLOCK.sub(lambda found: f"{found[1]}{_block(found[2], configs)}\n{found[3]}", text)


@cache
def example(config_file: Path, format_name: str) -> Manifest:
    """What a file would say of itself that was exported of a config's sample run."""
    loaded = config.load(config_file, sample=True)
    task, kind = loaded.experiment.task, format_named(format_name)
    classes = LABELS if task.label_maps else Classes(
        names=tuple(name for _, name in CATEGORIES), source_ids=tuple(source_id for source_id, _ in CATEGORIES))
    predictor = loaded.build_model(classes).eval()
    rule, resize = fixed_resize(predictor.resize, None)
    usual = kind.usual_options()
    given = Input(resize.size, usual.pixels, usual.layout)
    mean, std = predictor.normalisation
    return Manifest(
        detseg=__version__, format=kind.name, contract="final", precision="fp32", task=task_values(task),
        classes=classes, input=given, resize=rule, fill=resize.fill, mean=tuple(mean), std=tuple(std),
        outputs=output_specs(ExportedNetwork(predictor, task, contract="final", given=given).eval()), fingerprint={},
        checkpoint={"name": f"runs/{config_file.stem}"}, licence=None, created="", tools={})


def _block(asked: str, configs: Path) -> str:
    words = asked.split()
    if words == ["targets"]:
        return _table()
    if len(words) == 2 and words[0] == "facts" and words[1] in EXAMPLES:
        return _facts(example(configs / f"{EXAMPLES[words[1]]}.py", "onnx"))
    if len(words) != 3 or words[1] not in EXAMPLES:
        raise ValueError(f"a block of docs is <!-- app_code TARGET detection|segmentation FILE -->, got {asked!r}")
    target, name = target_named(words[0]), EXAMPLES[words[1]]
    texts = source(example(configs / f"{name}.py", target.format), target,
                   file=f"{name}{format_named(target.format).suffix}")
    if words[2] not in texts:
        raise ValueError(f"{target.name} has the files {', '.join(texts)}, got {words[2]!r}")
    proof = target.proof_of(words[2])
    note = f"`{words[2]}`, {proof}:" if proof == NOT_RUN else f"`{words[2]}`:"
    return f"{note}\n\n```{_LANGUAGES[Path(words[2]).suffix]}\n{texts[words[2]].rstrip()}\n```"


def _table() -> str:
    rows = [("target", "for", "files", "tests"), ("--",) * 4]
    rows += [(f"`{target.name}`", target.title, f"`{format_named(target.format).suffix}`",
              target.proof + "".join(f"; `{name}` {NOT_RUN}" for name in target.untested)) for target in TARGETS]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _facts(manifest: Manifest) -> str:
    height, width = manifest.input.size
    how = "letterboxed into" if manifest.resize == "letterbox" else "stretched to"
    return "\n".join([
        f"- takes {takes(manifest)}, pictures {how} {height} x {width}",
        f"- gives {gives(manifest)}",
        f"- classes {', '.join(manifest.classes.names)}"])
