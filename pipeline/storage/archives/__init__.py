"""Files of rows that are ZIP archives inside: logs of inspect_ai and Excel workbooks."""

from mmpo.pipeline.storage.archives.eval_logs import log_rows
from mmpo.pipeline.storage.archives.workbooks import WORKBOOKS, sheet_of, workbook_rows
