"""Why a score is what it is, and whether two differ."""
