"""A finished dataset and compared models, shown: self-contained HTML pages, and what each γ makes of the margins."""

from mmpo.pipeline.report.comparison_page import write_comparison
from mmpo.pipeline.report.dataset import (
    compare_versions,
    feedback_of,
    longer_wins,
    read_figures,
    report_on,
    source_rows,
    write_report,
    write_versions,
)
from mmpo.pipeline.report.evaluation_page import write_evaluation_page
from mmpo.pipeline.report.gamma import suggest_gamma
from mmpo.pipeline.report.left_out import rejects
from mmpo.pipeline.report.page import (
    COLOURS,
    Picture,
    draw,
    number,
    points,
    render,
    table,
    temperature_words,
    trained_words,
    with_interval,
    write_whole,
)
from mmpo.pipeline.report.rounds_page import rounds_tables, write_rounds
