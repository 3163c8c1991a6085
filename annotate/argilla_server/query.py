"""The queries of the embedded Argilla's search engine, in SQLAlchemy over the server's own tables; values are always bound.

Runs inside the server's environment (see `argilla_search`).
"""

# pyright: reportMissingImports=false

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from mmpo.annotate.argilla_server.filters import condition_of, each_of, path_to, sort_value
from mmpo.annotate.argilla_server.text_query import pack

__all__ = [
    "MATCHES",
    "SHUFFLED",
    "conditions",
    "count",
    "metadata_values",
    "page",
    "records_by_status",
    "responses_by_status",
]

SHUFFLED, MATCHES = "mmpo_shuffled", "mmpo_matches"


def conditions(dataset: Any, query: Any, filter: Any) -> list[Any]:
    """All that a record must fulfil: dataset, text query (TextQuery, text or None) and filter of the search engine's kinds."""
    from argilla_server.models import Record

    found = [Record.dataset_id == dataset.id]
    if query is not None:
        found += _text_conditions(dataset, query)
    filters = getattr(filter, "filters", [filter] if filter is not None else [])
    return found + [condition_of(one) for one in filters]


def count(conditions: Sequence[Any]) -> Any:
    """How many records fulfil the conditions."""
    from argilla_server.models import Record
    from sqlalchemy import func, select

    return select(func.count()).select_from(Record).where(*conditions)


def page(conditions: Sequence[Any], sort: Sequence[Any] | None, user: UUID | None, offset: int, limit: int) -> Any:
    """The ids of a page of the records that fulfil the conditions. Records without the value sorted by come last, either way."""
    from argilla_server.models import Record
    from sqlalchemy import func, literal_column, select

    orders = []
    for order in sort or ():
        value = sort_value(order.scope, descending=order.order == "desc")
        orders.append((value.desc() if order.order == "desc" else value.asc()).nulls_last())
    if user is not None and not sort:
        orders.append(getattr(func, SHUFFLED)(str(user), Record.id))
    # rowid: records that came in one request share their time to the microsecond.
    orders += [Record.inserted_at.asc(), literal_column("records.rowid")]
    return select(Record.id).where(*conditions).order_by(*orders).offset(offset).limit(limit)


def records_by_status(dataset: UUID) -> Any:
    """(status, count) of the records."""
    from argilla_server.models import Record
    from sqlalchemy import func, select

    return select(Record.status, func.count()).where(Record.dataset_id == dataset).group_by(Record.status)


def responses_by_status(dataset: UUID, user: UUID) -> Any:
    """(status, count) of one user's responses."""
    from argilla_server.models import Record, Response
    from sqlalchemy import func, select

    of_user = select(Response.status, func.count()).join(Record, Record.id == Response.record_id)
    return of_user.where(Record.dataset_id == dataset, Response.user_id == user).group_by(Response.status)


def metadata_values(metadata_property: Any) -> Any:
    """(value, count) of a metadata property over its dataset's records; of a list every member counts."""
    from argilla_server.models import Record
    from sqlalchemy import func, select, true

    each = each_of(Record.metadata_, path_to(metadata_property.name))
    found = select(each.c.value, func.count()).select_from(Record).join(each, true())
    return found.where(Record.dataset_id == metadata_property.dataset_id).group_by(each.c.value)


def _text_conditions(dataset: Any, query: Any) -> list[Any]:
    from argilla_server.models import Record
    from sqlalchemy import Text, func, type_coerce

    text, only = (query, None) if isinstance(query, str) else (query.q, query.field)
    names = [field.name for field in dataset.fields if not field.is_image and only in (None, field.name)]
    packed = pack(text, names)
    return [getattr(func, MATCHES)(type_coerce(Record.fields, Text), packed)] if packed else []
