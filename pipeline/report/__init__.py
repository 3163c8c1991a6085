"""Self-contained HTML pages of a dataset and of compared models."""

from mmpo.pipeline.report.dataset_figures import by_source, longer_wins, read_figures
from mmpo.pipeline.report.dataset_page import write_comparison, write_report
from mmpo.pipeline.report.page import number

__all__ = ["by_source", "longer_wins", "number", "read_figures", "write_comparison", "write_report"]
