"""Whether a data set can be trained on, found out before the training does."""

from __future__ import annotations

from detseg.data.check.findings import Finding, Report, Spot, Table
from detseg.data.check.network import NetworkView, usual_view
from detseg.data.check.place import Checked, check_place

__all__ = ["Checked", "Finding", "NetworkView", "Report", "Spot", "Table", "check_place", "usual_view"]
