"""Writes source code for an app around an exported file: Kotlin, Swift, C++ or JavaScript, for exactly this file.

    python tools/app_code.py FILE [--target TARGET] [--out DIR]
    python tools/app_code.py --targets               what there is, and what the tests run
    python tools/app_code.py --docs                  write the code blocks of docs/ again

The code resizes a picture as the file needs it, runs the file and brings boxes or labels back to the picture's own
pixels; classes, colours, names and shapes are of the file's manifest. It is written to DIR/TARGET/, for each target
that runs files of this format. The file must end with final predictions, as tools/export.py usually writes it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detseg.atomic import write_text
from detseg.cli import exit_code
from detseg.export.app_code import TARGETS, app_code
from detseg.export.app_docs import write_docs


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, does what it says, and gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE", help="an exported file")
    parser.add_argument("--target", metavar="TARGET",
                        help=f"{', '.join(target.name for target in TARGETS)} (all that run files of this format)")
    parser.add_argument("--out", type=Path, default=Path("apps"), metavar="DIR",
                        help="the folder to write to (%(default)s)")
    parser.add_argument("--targets", action="store_true", help="list the targets, and stop")
    parser.add_argument("--docs", action="store_true", help="write the code blocks of docs/ again, and stop")
    return exit_code(lambda: _write(parser.parse_args(arguments)))


def _write(options: argparse.Namespace) -> None:
    if options.targets:
        print("\n".join(f"{target.name}: {target.title}; {target.proof}" for target in TARGETS))
        return
    if options.docs:
        root = Path(__file__).parents[1]
        changed = write_docs(root / "docs", configs=root / "configs")
        print(f"{len(changed)} pages changed{''.join(f', {path}' for path in changed)}")
        return
    if options.file is None:
        raise ValueError("name an exported file, or list the targets with --targets")
    for target, texts in app_code(options.file, target=options.target).items():
        for name, text in texts.items():
            write_text(options.out / target / name, text)
        print(f"{options.out / target}: {', '.join(texts)}")
