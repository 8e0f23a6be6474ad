"""Heads: one file a head, each whole."""
