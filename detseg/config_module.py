"""Config files as modules: run from their text, and run again where their classes are needed in another process."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import NamedTuple


class ConfigModule(NamedTuple):
    """A config file as it was run."""

    name: str
    """Of its module, by which pickle finds the classes and functions in it."""
    path: str
    text: bytes


_running: dict[str, ConfigModule] = {}


def run_config(path: Path, text: bytes) -> types.ModuleType:
    """The module of a config file. Raises what its code does, and SyntaxError."""
    return _run(ConfigModule(f"detseg_config_{path.stem}", str(path), text))


def running_configs() -> tuple[ConfigModule, ...]:
    """The config files that were run in this process."""
    return tuple(_running.values())


def run_again(configs: tuple[ConfigModule, ...]) -> None:
    """Runs what another process has run, unless this process knows it: a worker that was not forked knows nothing."""
    for config in configs:
        if config.name not in sys.modules:
            _run(config)


def _run(config: ConfigModule) -> types.ModuleType:
    module = types.ModuleType(config.name)
    module.__file__ = config.path
    # dataclasses and pickle look a module up by its name
    sys.modules[config.name] = module
    _running[config.name] = config
    # compiled here rather than imported: a cached bytecode file could be that of an older text
    exec(compile(config.text, config.path, "exec"), vars(module))
    return module
