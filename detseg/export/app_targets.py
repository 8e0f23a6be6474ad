"""The languages and runtimes that there is app code for, as data; `detseg.export.app_code` writes it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

RUN = "built, run and compared with detseg predict by the slow tests"
STAND_INS = "compiled and run by the slow tests with stand-ins for Android and the runtime, never with them"
NOT_RUN = "not compiled or run by the tests"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A language and a runtime that there is code for, as data."""

    name: str
    """What --target calls it."""
    title: str
    format: str
    """Of the files that it runs."""
    templates: Mapping[str, str]
    """Of each file to write the text in `apps/`; "{kind}" in its name is Detector or Segmenter."""
    proof: str = NOT_RUN
    """What the tests do with it, for the head of every file."""
    untested: tuple[str, ...] = ()
    """Files of which that is not true: they are `NOT_RUN`."""

    def proof_of(self, file: str) -> str:
        """What the tests do with one of its files."""
        return NOT_RUN if file in self.untested else self.proof


TARGETS = (
    Target(name="kotlin-litert", title="Android: Kotlin, LiteRT", format="litert",
           templates={"Picture.kt": "kotlin/Picture.kt", "{kind}.kt": "kotlin/litert.kt"}, proof=STAND_INS),
    Target(name="kotlin-executorch", title="Android: Kotlin, ExecuTorch", format="executorch",
           templates={"Picture.kt": "kotlin/Picture.kt", "{kind}.kt": "kotlin/executorch.kt"}, proof=STAND_INS),
    Target(name="kotlin-onnxruntime", title="Android: Kotlin, ONNX Runtime", format="onnx",
           templates={"Picture.kt": "kotlin/Picture.kt", "{kind}.kt": "kotlin/onnxruntime.kt"}, proof=STAND_INS),
    Target(name="swift-coreml", title="iOS and macOS: Swift, Core ML", format="coreml",
           templates={"{kind}.swift": "swift/coreml.swift"}),
    Target(name="cpp-executorch", title="C++, ExecuTorch", format="executorch", proof=RUN,
           templates={"picture.h": "cpp/picture.h", "main.cpp": "cpp/executorch.cpp",
                      "CMakeLists.txt": "cpp/executorch.cmake"}),
    Target(name="cpp-onnxruntime", title="C++, ONNX Runtime", format="onnx",
           templates={"picture.h": "cpp/picture.h", "main.cpp": "cpp/onnxruntime.cpp",
                      "CMakeLists.txt": "cpp/onnxruntime.cmake"}),
    Target(name="js-onnxruntime", title="JavaScript: browsers and Node, ONNX Runtime", format="onnx", proof=RUN,
           templates={"model.mjs": "js/model.mjs", "predict.mjs": "js/predict.mjs", "browser.mjs": "js/browser.mjs",
                      "package.json": "js/package.json"}, untested=("browser.mjs",)),
)


def target_named(name: str) -> Target:
    """ValueError with the nearest name where there is none."""
    known = {target.name: target for target in TARGETS}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise ValueError(f"there is no target {name!r}{f'; did you mean {near[0]}?' if near else ''} "
                         f"(targets: {', '.join(known)})")
    return known[name]
