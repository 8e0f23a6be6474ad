"""Networks for other runtimes: one program of the whole prediction, and one file for each format made from it."""
