"""Data sets: what reads files, augments, generates and batches."""
