"""Writes an app's source code around an exported file: Kotlin, Swift, C++, JavaScript.

    detseg app-code FILE [--target TARGET] [--out DIR]
    detseg app-code --targets               what there is, and what the tests run
    detseg app-code --docs                  write the code blocks of docs/ again

The code is for exactly this file. It resizes a picture as the file needs it, runs the file and brings boxes or labels
back to the picture's own pixels; classes, colours, names and shapes are of the file's manifest. It is written to
DIR/TARGET/, for each target that runs files of this format. The file must end with final predictions, as detseg export
usually writes it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detseg.atomic import write_text
from detseg.cli import command_parser, exit_code
from detseg.config_files import BUILT_IN
from detseg.export.app_targets import TARGETS


def build_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE", help="an exported file")
    parser.add_argument("--target", metavar="TARGET",
                        help=f"{', '.join(target.name for target in TARGETS)} (all that run files of this format)")
    parser.add_argument("--out", type=Path, default=Path("apps"), metavar="DIR",
                        help="the folder to write to (%(default)s)")
    parser.add_argument("--targets", action="store_true", help="list the targets, and stop")
    parser.add_argument("--docs", action="store_true", help="write the code blocks of docs/ again, and stop")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, does what it says, and gives the exit code."""
    return exit_code(lambda: _write(build_parser().parse_args(arguments)))


def _write(options: argparse.Namespace) -> None:
    if options.targets:
        print("\n".join(f"{target.name}: {target.title}; {target.proof}" for target in TARGETS))
        return
    docs = BUILT_IN.with_name("docs")
    if options.docs and not docs.is_dir():
        raise ValueError("--docs is for a copy of the repository; an installed detseg has no docs/")
    if options.file is None and not options.docs:
        raise ValueError("name an exported file, or list the targets with --targets")
    from detseg.export.app_code import app_code
    from detseg.export.app_docs import write_docs

    if options.docs:
        changed = write_docs(docs, configs=BUILT_IN)
        print(f"{len(changed)} pages changed{''.join(f', {path}' for path in changed)}")
        return
    for target, texts in app_code(options.file, target=options.target).items():
        for name, text in texts.items():
            write_text(options.out / target / name, text)
        print(f"{options.out / target}: {', '.join(texts)}")
