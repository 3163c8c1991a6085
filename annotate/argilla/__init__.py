"""People grade in Argilla: push, pull, and merging what they said."""

from mmpo.annotate.argilla.answers import Answer, Answers, Raters
from mmpo.annotate.argilla.client import api_url_of, connect
from mmpo.annotate.argilla.dataset import GRADES
from mmpo.annotate.argilla.display import DISPLAYS, printable
from mmpo.annotate.argilla.items import Item
from mmpo.annotate.argilla.known_margins import Known
from mmpo.annotate.argilla.merge import merge_answers
from mmpo.annotate.argilla.options import PullOptions, PushOptions
from mmpo.annotate.argilla.priorities import SELECTIONS, select
from mmpo.annotate.argilla.pull import pull
from mmpo.annotate.argilla.push import push
from mmpo.annotate.argilla.records import (
    Found,
    certainty,
    fields_of,
    grade_of,
    metadata_of,
    order_of,
    read_record,
    record_id,
    suggestion_of,
)
from mmpo.annotate.argilla.team import upsert

__all__ = [
    "DISPLAYS",
    "GRADES",
    "SELECTIONS",
    "Answer",
    "Answers",
    "Found",
    "Item",
    "Known",
    "PullOptions",
    "PushOptions",
    "Raters",
    "api_url_of",
    "certainty",
    "connect",
    "fields_of",
    "grade_of",
    "merge_answers",
    "metadata_of",
    "order_of",
    "printable",
    "pull",
    "push",
    "read_record",
    "record_id",
    "select",
    "suggestion_of",
    "upsert",
]
