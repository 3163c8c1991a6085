"""A search engine for Argilla's server that answers from the server's own tables: nothing to index, nothing to fall behind.

Runs inside the server's environment, where the launcher registers it. The methods are those of
`argilla_server.search_engine.base.SearchEngine` and mean what they mean with Elasticsearch, but for these: text is looked for
anywhere, also inside longer words (there: whole words); the roles of a chat are no text; order without a wish is the order of
pushing (there: by relevance); no vectors. Values are always bound.
"""

# pyright: reportMissingImports=false

import hashlib
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any
from uuid import UUID

from mmpo.annotate.argilla_server.filters import condition_of, each_of, path_to, refused, sort_value
from mmpo.annotate.argilla_server.text_query import matches, pack

if find_spec("argilla_server") is not None:
    from argilla_server.database import AsyncSessionLocal
    from argilla_server.models import Record, Response
    from argilla_server.search_engine.base import (
        FloatMetadataMetrics,
        IntegerMetadataMetrics,
        SearchResponseItem,
        SearchResponses,
        TermsMetrics,
    )
    from sqlalchemy import Text, func, literal_column, select, true, type_coerce

SHUFFLED, MATCHES = "mmpo_shuffled", "mmpo_matches"
MOST_TERMS = 2**14


def shuffled(seed: str, record: str) -> str:
    """The place of a record in one user's order: the same every time, and another for every user."""
    return hashlib.blake2b(f"{seed}\0{record}".encode(), digest_size=8).hexdigest()


def add_functions(connection: Any) -> None:
    """Gives an SQLite connection the functions that the queries use."""
    connection.create_function(SHUFFLED, 2, shuffled, deterministic=True)
    connection.create_function(MATCHES, 2, matches, deterministic=True)


class TablesEngine:
    """The search engine. What tells an index about changes has nothing to do: the tables are the index."""

    @classmethod
    async def new_instance(cls) -> "TablesEngine":
        """An engine; it holds nothing."""
        return cls()

    async def close(self) -> None:
        """Nothing to close."""

    async def ping(self) -> bool:
        """It is there."""
        return True

    async def info(self) -> dict[str, Any]:
        """What the server's status page shows."""
        return {"name": "mmpo", "note": "answers from Argilla's own tables"}

    async def _nothing(self, *arguments: Any, **named: Any) -> None:
        """Nothing to do."""

    create_index = delete_index = configure_metadata_property = configure_index_vectors = _nothing
    index_records = partial_record_update = delete_records = _nothing
    update_record_response = delete_record_response = update_record_suggestion = delete_record_suggestion = _nothing

    async def get_dataset_progress(self, dataset: Any) -> dict[str, int]:
        """Records of the dataset by status, and `total`; empty for a draft."""
        return {} if dataset.is_draft else await _counts_by_status(dataset, select(Record.status, func.count()))

    async def get_dataset_user_progress(self, dataset: Any, user: Any) -> dict[str, int]:
        """The user's responses in the dataset by status, and `total`; empty for a draft."""
        if dataset.is_draft:
            return {}
        of_user = select(Response.status, func.count()).join(Record, Record.id == Response.record_id)
        return await _counts_by_status(dataset, of_user.where(Response.user_id == user.id))

    async def search(
        self,
        dataset: Any,
        query: Any = None,
        filter: Any = None,
        sort: Any = None,
        offset: int = 0,
        limit: int = 100,
        user_id: Any = None,
    ) -> Any:
        """The ids of a page of records, and how many there are in all. With user_id and no sort: in that user's own order."""
        conditions = _conditions(dataset, query, filter)
        page = _page(conditions, sort, user_id, offset, limit)
        async with AsyncSessionLocal() as session:
            total = await session.scalar(select(func.count()).select_from(Record).where(*conditions))
            ids = (await session.scalars(page)).all() if total > offset else []
        score = None if sort else 1.0
        return SearchResponses(items=[SearchResponseItem(record_id=record, score=score) for record in ids], total=total)

    async def similarity_search(self, *arguments: Any, **named: Any) -> Any:
        """Refused: it needs an index of vectors."""
        raise refused(
            "the Argilla of `mmpo argilla serve` has no search by vectors; leave the vector out of the query, or move to a full "
            "Argilla with Elasticsearch"
        )

    async def compute_metrics_for(self, metadata_property: Any) -> Any:
        """What the page's filters offer: the terms with their counts, most frequent first, or the smallest and the largest
        number."""
        each = each_of(Record.metadata_, path_to(metadata_property.name))  # of a list every member counts
        values = select(each.c.value, func.count()).select_from(Record).join(each, true())
        of_dataset = values.where(Record.dataset_id == metadata_property.dataset_id)
        async with AsyncSessionLocal() as session:
            found = await session.execute(of_dataset.group_by(each.c.value))
            counts = Counter({value: count for value, count in found if value is not None})
        if metadata_property.is_terms:
            ranked = sorted(((str(term), count) for term, count in counts.items()), key=lambda item: (-item[1], item[0]))
            values = [TermsMetrics.TermCount(term=term, count=count) for term, count in ranked[:MOST_TERMS]]
            return TermsMetrics(total=sum(counts.values()), values=values)
        metrics = IntegerMetadataMetrics if metadata_property.is_integer else FloatMetadataMetrics
        return metrics(min=min(counts, default=None), max=max(counts, default=None))


async def _counts_by_status(dataset: Any, query: Any) -> dict[str, int]:
    """query: selects a status and a count; the counts of the dataset's records, and `total`."""
    status = query.selected_columns[0]
    async with AsyncSessionLocal() as session:
        rows = await session.execute(query.where(Record.dataset_id == dataset.id).group_by(status))
        found = {str(status): count for status, count in rows}
    return {"total": sum(found.values()), **found}


def _conditions(dataset: Any, query: Any, filter: Any) -> list[Any]:
    """All that a record must fulfil: dataset, text query (TextQuery, text or None) and filter of the search engine's kinds."""
    found = [Record.dataset_id == dataset.id]
    if query is not None:
        text, only = (query, None) if isinstance(query, str) else (query.q, query.field)
        packed = pack(text, [field.name for field in dataset.fields if not field.is_image and only in (None, field.name)])
        found += [getattr(func, MATCHES)(type_coerce(Record.fields, Text), packed)] if packed else []
    filters = getattr(filter, "filters", [filter] if filter is not None else [])
    return found + [condition_of(one) for one in filters]


def _page(conditions: Sequence[Any], sort: Sequence[Any] | None, user: UUID | None, offset: int, limit: int) -> Any:
    """The ids of a page of the records that fulfil the conditions. Records without the value sorted by come last, either way."""
    orders = []
    for order in sort or ():
        value = sort_value(order.scope, descending=order.order == "desc")
        orders.append((value.desc() if order.order == "desc" else value.asc()).nulls_last())
    if user is not None and not sort:
        orders.append(getattr(func, SHUFFLED)(str(user), Record.id))
    # rowid: records that came in one request share their time to the microsecond.
    orders += [Record.inserted_at.asc(), literal_column("records.rowid")]
    return select(Record.id).where(*conditions).order_by(*orders).offset(offset).limit(limit)
