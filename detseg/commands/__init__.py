"""The commands: arguments only, no logic. `tools/` runs them as files."""
