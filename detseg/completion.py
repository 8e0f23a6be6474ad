"""What the shell completes: verbs, options, their choices, configs and files. The work is argcomplete's."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import argcomplete
from argcomplete.completers import DirectoriesCompleter, FilesCompleter
from argcomplete.shell_integration import shellcode

from detseg.choices import SHELLS
from detseg.config_files import built_in_configs
from detseg.export.app_targets import TARGETS
from detseg.export.formats import format_names

Completer: TypeAlias = Callable[..., Iterable[str]]


def completion_script(shell: str) -> str:
    """What a shell is to read when it starts, so that it asks `detseg` for completions."""
    return str(shellcode(["detseg"], shell=shell)).strip()


def complete(summaries: Mapping[str, str], parsers: Mapping[str, argparse.ArgumentParser]) -> None:
    """Answers the shell, which asks by environment variables, and ends the process.

    Args:
        summaries: a line on each verb.
        parsers: of the verb that has been typed, if any.
    """
    parser = argparse.ArgumentParser(prog="detseg")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--print-completion", choices=SHELLS)
    verbs = parser.add_subparsers()
    for parsed in parsers.values():
        _add_completers(parsed)
    for verb, text in summaries.items():
        parents = [parsers[verb]] if verb in parsers else []
        verbs.add_parser(verb, help=text, parents=parents, add_help=False)
    argcomplete.autocomplete(parser, always_complete_options=False)


def _configs_and_files(prefix: str, **_: object) -> list[str]:
    return [*(name for name in built_in_configs() if name.startswith(prefix)), *FilesCompleter()(prefix)]


def _one_of(names: Iterable[str]) -> Completer:
    return lambda **_: [*names]


def _completer(action: argparse.Action, *, copied: bool) -> Completer | None:
    """By what help calls the value; None leaves it to argcomplete, which offers the choices or files."""
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    if "CONFIG" in metavar:
        return _configs_and_files
    if metavar == "DIR":
        return DirectoriesCompleter()
    known: dict[str, Iterable[str]] = {
        "FORMAT": format_names(), "TARGET": [target.name for target in TARGETS],
        "NAME": built_in_configs() if copied else ()}
    if metavar in known and action.choices is None:
        return _one_of(known[metavar])
    return _one_of(()) if "VALUE" in metavar or action.type in (int, float) else None


def _add_completers(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _add_completers(inner)
        elif (completer := _completer(action, copied=parser.prog.endswith("configs copy"))) is not None:
            action.completer = completer  # type: ignore[attr-defined]
