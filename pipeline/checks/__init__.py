"""What `validate` looks at: one pass over the parts of a dataset folder, and the files beside them; what was found, by rule."""

from mmpo.pipeline.checks.feedback import look_at_feedback
from mmpo.pipeline.checks.findings import Findings
from mmpo.pipeline.checks.folder import look_at_folder
from mmpo.pipeline.checks.pairs import look_at_pairs
