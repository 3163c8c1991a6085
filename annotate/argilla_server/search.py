"""A search engine for Argilla's server that answers from the server's own tables: nothing to index, nothing to fall behind.

Runs inside the server's environment (see `argilla_launcher`). The methods are those of `argilla_server.search_engine.base.SearchEngine`
and mean what they mean with Elasticsearch, but for these: text is looked for anywhere, also inside longer words (there: whole
words); the roles of a chat are no text; order without a wish is the order of pushing (there: by relevance); no vectors.
"""

# pyright: reportMissingImports=false

import hashlib
from collections import Counter
from typing import Any

from mmpo.annotate.argilla_server import query as queries
from mmpo.annotate.argilla_server.filters import refused
from mmpo.annotate.argilla_server.text_query import matches

__all__ = ["TablesEngine", "add_functions", "shuffled"]

MOST_TERMS = 2**14


def shuffled(seed: str, record: str) -> str:
    """The place of a record in one user's order: the same every time, and another for every user."""
    return hashlib.blake2b(f"{seed}\0{record}".encode(), digest_size=8).hexdigest()


def add_functions(connection: Any) -> None:
    """Gives an SQLite connection the functions that the queries use."""
    connection.create_function(queries.SHUFFLED, 2, shuffled, deterministic=True)
    connection.create_function(queries.MATCHES, 2, matches, deterministic=True)


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
        return {} if dataset.is_draft else await _counts(queries.records_by_status(dataset.id))

    async def get_dataset_user_progress(self, dataset: Any, user: Any) -> dict[str, int]:
        """The user's responses in the dataset by status, and `total`; empty for a draft."""
        return {} if dataset.is_draft else await _counts(queries.responses_by_status(dataset.id, user.id))

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
        from argilla_server.database import AsyncSessionLocal
        from argilla_server.search_engine.base import SearchResponseItem, SearchResponses

        conditions = queries.conditions(dataset, query, filter)
        page = queries.page(conditions, sort, user_id, offset, limit)
        async with AsyncSessionLocal() as session:
            total = await session.scalar(queries.count(conditions))
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
        """What the page's filters offer: the terms with their counts, most frequent first, or the smallest and the largest number."""
        from argilla_server.database import AsyncSessionLocal
        from argilla_server.search_engine.base import FloatMetadataMetrics, IntegerMetadataMetrics, TermsMetrics

        async with AsyncSessionLocal() as session:
            found = await session.execute(queries.metadata_values(metadata_property))
            counts = Counter({value: count for value, count in found if value is not None})
        if metadata_property.is_terms:
            ranked = sorted(((str(term), count) for term, count in counts.items()), key=lambda item: (-item[1], item[0]))
            values = [TermsMetrics.TermCount(term=term, count=count) for term, count in ranked[:MOST_TERMS]]
            return TermsMetrics(total=sum(counts.values()), values=values)
        metrics = IntegerMetadataMetrics if metadata_property.is_integer else FloatMetadataMetrics
        return metrics(min=min(counts, default=None), max=max(counts, default=None))


async def _counts(query: Any) -> dict[str, int]:
    from argilla_server.database import AsyncSessionLocal

    async with AsyncSessionLocal() as session:
        found = {str(status): count for status, count in (await session.execute(query)).all()}
    return {"total": sum(found.values()), **found}
