"""`detseg VERB ...` and `python -m detseg VERB ...`: a verb is a module of `detseg/commands/`.

Nothing is imported but the module of the verb that is asked for.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

from detseg import __version__, commands
from detseg.choices import SHELLS

_FIRST = ("train", "test", "predict", "export", "benchmark", "analyze", "compare", "report", "check-data", "browse",
          "convert-data", "configs", "demo", "app-code")
"""How --help begins; verbs that it does not name follow."""


def verbs() -> dict[str, str]:
    """The module of each verb, as in {"check-data": "detseg.commands.check_data"}, in the order of --help."""
    found = {info.name.replace("_", "-"): f"{commands.__name__}.{info.name}"
             for info in pkgutil.iter_modules(commands.__path__)}
    return {verb: found[verb] for verb in (*_FIRST, *sorted(found.keys() - {*_FIRST})) if verb in found}


def summary(module: str) -> str:
    """The first line of a command's docstring, which is read and not imported."""
    path = Path(commands.__path__[0]) / f"{module.rpartition('.')[2]}.py"
    return (ast.get_docstring(ast.parse(path.read_bytes())) or "").partition("\n")[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the verb that the command line names, and gives its exit code; 2 where there is no such verb."""
    known = verbs()
    if "_ARGCOMPLETE" in os.environ:
        from detseg.completion import complete

        typed = os.environ.get("COMP_LINE", "").split()[1:2]
        complete({verb: summary(module) for verb, module in known.items()}, {
            verb: importlib.import_module(known[verb]).build_parser() for verb in typed if verb in known})
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and not given[0].startswith("-"):
        verb = given[0]
        if verb not in known:
            near = difflib.get_close_matches(verb.replace("_", "-"), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            print(f"error: detseg has no command {verb!r}; {hint}", file=sys.stderr)
            return 2
        code: int = importlib.import_module(known[verb]).main(given[1:])
        return code
    parser = _parser(known)
    options = parser.parse_args(given)
    if options.shell is None:
        parser.print_help()
    else:
        from detseg.completion import completion_script

        print(completion_script(options.shell))
    return 0


def _parser(known: dict[str, str]) -> argparse.ArgumentParser:
    width = max(map(len, known))
    listed = "\n".join(f"  {verb:{width}}  {summary(module)}" for verb, module in known.items())
    parser = argparse.ArgumentParser(
        prog="detseg", usage="detseg VERB ...", formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"Mobile detectors and segmenters: trained, evaluated, exported.\n\n{listed}",
        epilog="detseg VERB --help tells more of each.")
    parser.add_argument("--version", action="version", version=f"detseg {__version__}")
    parser.add_argument("--print-completion", choices=SHELLS, dest="shell",
                        help="what the shell needs to complete verbs, options, configs and files")
    return parser


if __name__ == "__main__":
    sys.exit(main())
