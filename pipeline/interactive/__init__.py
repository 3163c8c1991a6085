"""What Python users have beside files: tables of other libraries, and results that show themselves in a line and in notebooks."""

from mmpo.pipeline.interactive.frames import arrow_table, as_file, check_table, is_table, refuse_other, to_dataset, to_pandas
from mmpo.pipeline.interactive.shown import InShort, Summary, shown_table
