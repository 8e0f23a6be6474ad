"""Published checkpoints, read under their own names."""
