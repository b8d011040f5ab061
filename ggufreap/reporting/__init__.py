"""The account of a pruned model: `report.json`, one HTML page, a model card and pictures.

`report.json` is the only source of numbers; whatever the others show, they look up there.
"""

from ggufreap.reporting.document import load_report
from ggufreap.reporting.facts import Report
from ggufreap.reporting.writing import check_report, write_report

__all__ = ["Report", "check_report", "load_report", "write_report"]
