"""Runs a command as a user would, in this process."""

from __future__ import annotations

import importlib

import pytest


def run(name: str, *arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """A tool's exit code, output and errors, of which none is a traceback."""
    capsys.readouterr()
    code = int(importlib.import_module(f"detseg.commands.{name}").main([*arguments]))
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err
