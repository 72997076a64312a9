"""The results of a run as one self-contained HTML page and as tables for the terminal."""

from __future__ import annotations

from fedlab.report.page import write_report
from fedlab.report.tables import result_table

__all__ = ["result_table", "write_report"]
