"""The commands, one module a verb of `detseg`: arguments only, no logic. `tools/` runs them as files.

Each has `build_parser()` and `main(arguments)`, and imports what needs torch only when it works, so that --help,
completion and a misspelt name are answered at once. `detseg.__main__` finds them by themselves.
"""
