"""Why a network has its score."""
