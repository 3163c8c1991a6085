"""People grade in Argilla: push, pull, and merging what they said."""

from mmpo.annotate.argilla.answers import HumanGrade, PulledAnswers, Raters
from mmpo.annotate.argilla.client import api_url_of, connect, upsert
from mmpo.annotate.argilla.dataset import GRADES
from mmpo.annotate.argilla.display import DISPLAYS
from mmpo.annotate.argilla.merge import merge_answers
from mmpo.annotate.argilla.options import PullOptions, PushOptions
from mmpo.annotate.argilla.pull import pull, status
from mmpo.annotate.argilla.push import push
from mmpo.annotate.argilla.records import (
    ShownRecord,
    certainty,
    fields_of,
    grade_of,
    metadata_of,
    order_of,
    read_record,
    record_id,
    suggestion_of,
)
from mmpo.annotate.select import SELECTIONS, KnownMargin, RecordItem
