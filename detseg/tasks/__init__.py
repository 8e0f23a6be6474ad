"""What is particular to a task; the loop, evaluation and export know only `detseg.interfaces.Task`."""
