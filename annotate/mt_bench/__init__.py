"""MT-bench: two-turn questions answered by a model and graded answer by answer by a judge; FastChat's files read and written.

The page's plots are imported where they are drawn.
"""

from typing import TYPE_CHECKING, Any

from mmpo.annotate.mt_bench.estimate import estimate
from mmpo.annotate.mt_bench.options import MtBenchOptions
from mmpo.annotate.mt_bench.output import mt_bench_judgments
from mmpo.annotate.mt_bench.run import mt_bench, prepared

if TYPE_CHECKING:
    from mmpo.annotate.mt_bench.page import shown_rows


def __getattr__(name: str) -> Any:
    if name == "shown_rows":
        from mmpo.annotate.mt_bench.page import shown_rows

        return shown_rows
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
