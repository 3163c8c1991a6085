"""`mmpo report`: a dataset to judge by: what stands in it, who graded it, what looks wrong; two versions of it beside one another."""

from mmpo.pipeline.report.dataset.feedback import feedback_of
from mmpo.pipeline.report.dataset.figures import PairFigures, longer_wins, read_figures, source_rows
from mmpo.pipeline.report.dataset.page import report_on, write_report
from mmpo.pipeline.report.dataset.versions import compare_versions, write_versions
