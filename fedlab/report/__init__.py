"""What a run amounts to: one self-contained HTML page, and tables for the terminal."""

from __future__ import annotations

from fedlab.report.page import write_report
from fedlab.report.tables import result_table

__all__ = ["result_table", "write_report"]
