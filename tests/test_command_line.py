"""`detseg VERB`: the verbs are found, the right one runs, and nothing waits for torch that does not need it."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from detseg import __version__, commands
from detseg.__main__ import main, summary, verbs
from detseg.choices import SHELLS
from detseg.cli import exit_code
from detseg.completion import completion_script
from detseg.export.formats import format_names, formats

from .conftest import ROOT

VERBS = verbs()


def test_every_module_of_commands_is_a_verb_and_a_tool() -> None:
    modules = {info.name for info in pkgutil.iter_modules(commands.__path__)}
    assert {module.rpartition(".")[2] for module in VERBS.values()} == modules
    assert list(VERBS)[:5] == ["train", "test", "predict", "export", "benchmark"]
    assert VERBS["check-data"] == "detseg.commands.check_data"
    tools = {path.stem for path in (ROOT / "tools").glob("*.py")}
    assert tools == modules


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_explains_itself(verb: str) -> None:
    parser = importlib.import_module(VERBS[verb]).build_parser()
    assert parser.prog == f"detseg {verb}"
    text = parser.format_help()
    first = summary(VERBS[verb])
    assert first.endswith(".")
    assert len(first) < 100
    assert first in text
    assert f"    detseg {verb} " in text, "an example"


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    for verb, module in VERBS.items():
        assert f"  {verb} " in text
        assert summary(module) in text
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert capsys.readouterr().out == text


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"detseg {__version__}\n"


@pytest.mark.parametrize(("verb", "message"), [
    ("trian", "error: detseg has no command 'trian'; did you mean train?\n"),
    ("check_data", "error: detseg has no command 'check_data'; did you mean check-data?\n"),
    ("xyz", f"error: detseg has no command 'xyz'; there are {', '.join(VERBS)}\n"),
])
def test_a_misspelt_verb(verb: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--anything"]) == 2
    assert capsys.readouterr().err == message


def test_a_verb_gets_the_rest_and_gives_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "copy", "ssdlite_v3_larg"]) == 2
    assert "did you mean ssdlite_v3_large?" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["train"])
    assert "usage: detseg train [-h]" in capsys.readouterr().err


def test_python_m_detseg(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["detseg", "configs", "--json"])
    monkeypatch.delitem(sys.modules, "detseg.__main__")
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("detseg", run_name="__main__")
    assert any(one["name"] == "ssdlite_v3_large" for one in json.loads(capsys.readouterr().out))


_LIGHT = """
import contextlib, io, sys
from detseg.__main__ import main, verbs
lines = [[], ["--help"], ["trian"], ["configs"], ["configs", "copy", "raspp_v2", "mine.py"],
         ["--print-completion", "bash"], *([verb, "--help"] for verb in verbs()),
         ["train", "raspp_v3"], ["benchmark", "raspp_v3"], ["format-table", "raspp_v3"], ["test", "raspp_v3", "x.pt"],
         ["predict", "raspp_v3", "x.pt", "x.jpg"], ["export", "raspp_v3", "x.pt", "--format", "onnx"]]
errors = io.StringIO()
for line in lines:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            code = main(line)
        except SystemExit as end:
            code = end.code
    heavy = {"torch", "numpy", "cv2", "lightning", "PIL", "onnx"} & sys.modules.keys()
    assert not heavy, (line, heavy)
    assert code == (2 if "raspp_v3" in line or line == ["trian"] else 0), line
assert errors.getvalue().count("did you mean raspp_v2?") == 6, errors.getvalue()
"""


def test_what_needs_no_torch_does_not_import_it(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _LIGHT], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine.py").read_text() == (ROOT / "configs" / "raspp_v2.py").read_text()


def test_format_names_are_those_of_the_formats() -> None:
    assert format_names() == tuple(formats())


def test_an_opencv_that_does_not_load_has_a_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise ImportError("libGL.so.1: cannot open shared object file", name="cv2", path="cv2.abi3.so")

    assert exit_code(work) == 1
    assert capsys.readouterr().err == (
        "error: libGL.so.1: cannot open shared object file: OpenCV with windows needs a desktop's libraries; put the "
        "one without in its place: pip install --force-reinstall --no-deps opencv-python-headless\n")

    def broken() -> None:
        raise ModuleNotFoundError("no x", name="x")

    with pytest.raises(ModuleNotFoundError):
        exit_code(broken)


# ---------------------------------------------------------------------------------------------- the shell's completion

CASES = (
    ("detseg tr", {"train"}),
    ("detseg ch", {"check-backbone", "check-data"}),
    ("detseg train retinanet_v4", {"retinanet_v4_conv_medium", "retinanet_v4_hybrid_medium"}),
    ("detseg predict ow", {"own.py"}),
    ("detseg train --sa", {"--sample"}),
    ("detseg predict run --thr", {"--threshold"}),
    ("detseg train raspp_v2 --data ", {"own.py", "photos/"}),
    ("detseg predict run --out ", {"photos/"}),
    ("detseg export run --contract d", {"decoded"}),
    ("detseg export run --format o", {"onnx", "openvino"}),
    ("detseg app-code file --target s", {"swift-coreml"}),
    ("detseg configs c", {"copy"}),
    ("detseg configs copy rasp", {"raspp_v2", "raspp_v3_large"}),
)
_ASK: dict[str, str] = {
    "bash": """
eval "$(detseg --print-completion bash)"
while IFS= read -r COMP_LINE; do
    COMP_POINT=${#COMP_LINE} COMP_TYPE=9 COMPREPLY=()
    _python_argcomplete detseg 2>/dev/null
    echo ${COMPREPLY[@]}
done
""",
    "fish": """
detseg --print-completion fish | source
while read -l line
    echo (complete -C $line | string replace -r '\\t.*' '')
end
"""}


@pytest.mark.parametrize("shell", _ASK)
def test_a_shell_completes(shell: str, tmp_path: Path) -> None:
    """As the shell itself asks, after reading what `--print-completion` prints."""
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    program = tmp_path / "bin" / "detseg"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m detseg "$@"\n')
    program.chmod(0o755)
    here = tmp_path / "here"
    (here / "photos").mkdir(parents=True)
    (here / "own.py").touch()
    asked = CASES if shell == "bash" else CASES[1:6:2]  # each starts Python
    done = subprocess.run(
        [shell, "-c", _ASK[shell]], cwd=here, input="".join(f"{line}\n" for line, _ in asked), text=True, check=True,
        capture_output=True, env=os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)})
    assert [set(line.split()) for line in done.stdout.splitlines()] == [expected for _, expected in asked]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_for_the_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-completion", shell]) == 0
    text = capsys.readouterr().out
    assert text == completion_script(shell) + "\n"
    assert {"bash": "complete -o", "zsh": "compdef", "fish": "complete --command detseg"}[shell] in text
    if shutil.which(shell) is not None:
        assert subprocess.run([shell, "-n"], input=text, text=True, capture_output=True, check=False).returncode == 0
