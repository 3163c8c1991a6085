"""The embedded Argilla's search against a plain computation over the same records, through the real server's own interface."""

from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from argilla_fixture import Argilla
from argilla_searched import (
    COMPLETE,
    FILTERS,
    GRADED,
    RATERS,
    RECORDS,
    SORTS,
    STARS,
    STATUS,
    STATUSES,
    TEXTS,
    Body,
    between,
    has,
    metadata,
    search,
    searched,
    terms,
    within,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def held(argilla: Argilla) -> Iterator[SimpleNamespace]:
    """The dataset on the server and in memory."""
    with searched(argilla) as both:
        yield both


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_finds_what_it_says(held: SimpleNamespace, name: str) -> None:
    filter, rule = FILTERS[name]
    expected = [record.id for record in held.records if rule(record)]
    assert search(held, {"filters": {"and": [filter]}}) == (expected, len(expected))


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_query_finds_what_it_says(held: SimpleNamespace, name: str) -> None:
    query, rule = TEXTS[name]
    expected = [record.id for record in held.records if rule(record)]
    assert search(held, {"query": {"text": query}}) == (expected, len(expected))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(sorted(FILTERS)), max_size=3),
    st.none() | st.sampled_from(sorted(TEXTS)),
    st.integers(0, RECORDS + 5),
    st.integers(1, RECORDS),
)
def test_filters_text_and_pages_together(
    held: SimpleNamespace, filters: list[str], text: str | None, offset: int, limit: int
) -> None:
    rules = [FILTERS[name][1] for name in filters] + ([TEXTS[text][1]] if text else [])
    expected = [record.id for record in held.records if all(rule(record) for rule in rules)]
    body = {"filters": {"and": [FILTERS[name][0] for name in filters]}} if filters else {}
    body |= {"query": {"text": TEXTS[text][0]}} if text else {}
    assert search(held, body, offset=offset, limit=limit) == (expected[offset : offset + limit], len(expected))


@pytest.mark.parametrize("statuses", [["pending"], ["submitted"], ["draft", "discarded"], ["pending", "discarded"]], ids="-".join)
@pytest.mark.parametrize("rater", RATERS)
def test_an_annotator_sees_the_own_answers_only(held: SimpleNamespace, rater: str, statuses: list[str]) -> None:
    own = {record.id: record.answers.get(rater, ("pending",))[0] for record in held.records}
    found, total = search(held, {"filters": {"and": [terms(STATUS, *statuses)]}}, user=rater)
    assert total == len(found)
    assert sorted(found) == sorted(record for record, status in own.items() if status in statuses)


def test_an_annotator_filters_by_the_own_grade(held: SimpleNamespace) -> None:
    found, _ = search(held, {"filters": {"and": [terms(GRADED, "tie"), between(STARS, 3, 5)]}}, user="anna")
    assert sorted(found) == sorted(
        record.id for record in held.records
        if "anna" in record.answers and record.answers["anna"][1] == "tie" and record.answers["anna"][2] >= 3
    )  # fmt: skip


def test_each_annotator_has_an_order_of_their_own_that_stays(held: SimpleNamespace) -> None:
    orders = [search(held, {}, user=rater)[0] for rater in (*RATERS, *RATERS)]
    assert orders[0] == orders[2]
    assert orders[1] == orders[3]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(record.id for record in held.records)
    pages = [search(held, {}, user="anna", offset=offset, limit=7)[0] for offset in range(0, RECORDS, 7)]
    assert [record for page in pages for record in page] == orders[0]


@pytest.mark.parametrize("descending", [False, True], ids=["asc", "desc"])
@pytest.mark.parametrize("name", SORTS)
def test_sorting_puts_records_without_the_value_last(held: SimpleNamespace, name: str, descending: bool) -> None:
    scope, key = SORTS[name]
    known = [record for record in held.records if key(record) is not None]
    rest = [record for record in held.records if key(record) is None]
    # sorted() is stable in both directions, so ties stay in the order of pushing.
    expected = [record.id for record in [*sorted(known, key=key, reverse=descending), *rest]]
    found, total = search(held, {"sort": [{"scope": scope, "order": "desc" if descending else "asc"}]})
    assert (found, total) == (expected, RECORDS)


def test_two_sorts_and_a_list_of_terms(held: SimpleNamespace) -> None:
    sort = [{"scope": metadata("topic"), "order": "desc"}, {"scope": metadata("length"), "order": "asc"}]
    by_length = sorted(held.records, key=lambda r: (r.length is None, r.length or 0))
    named = sorted((r for r in by_length if r.topic), key=lambda r: max(r.topic), reverse=True)
    expected = [r.id for r in [*named, *(r for r in by_length if not r.topic)]]
    assert search(held, {"sort": sort})[0] == expected
    times = [{"scope": {"entity": "record", "property": "inserted_at"}, "order": "asc"}]
    assert search(held, {"sort": times})[0] == [record.id for record in held.records]


def test_progress_of_all_and_of_each(held: SimpleNamespace) -> None:
    complete = sum(map(COMPLETE, held.records))
    with held.argilla.as_user("owner") as owner:
        found = owner.get(f"/api/v1/datasets/{held.id}/progress").raise_for_status().json()
    assert {name: found[name] for name in ("total", "completed", "pending")} == {
        "total": RECORDS, "completed": complete, "pending": RECORDS - complete,
    }  # fmt: skip
    assert complete > 0
    assert held.dataset.progress()["completed"] == complete
    for rater in RATERS:
        own = Counter(record.answers.get(rater, ("pending",))[0] for record in held.records)
        with held.argilla.as_user(rater) as user:
            mine = user.get(f"/api/v1/me/datasets/{held.id}/metrics").raise_for_status().json()["responses"]
        assert mine == {"total": RECORDS, **{status: own[status] for status in (*STATUSES, "pending")}}


def test_metrics_of_metadata(held: SimpleNamespace) -> None:
    with held.argilla.as_user("owner") as owner:
        properties = owner.get(f"/api/v1/me/datasets/{held.id}/metadata-properties").raise_for_status().json()["items"]
        metrics = {
            one["name"]: owner.get(f"/api/v1/metadata-properties/{one['id']}/metrics").raise_for_status().json()
            for one in properties
        }
    topics = Counter(topic for record in held.records for topic in record.topic)
    assert metrics["topic"]["total"] == sum(topics.values())
    assert {value["term"]: value["count"] for value in metrics["topic"]["values"]} == dict(topics)
    counts = [value["count"] for value in metrics["topic"]["values"]]
    assert counts == sorted(counts, reverse=True)
    for name in ("length", "margin"):
        values = [value for record in held.records if (value := getattr(record, name)) is not None]
        assert (metrics[name]["min"], metrics[name]["max"]) == (min(values), max(values))


@pytest.mark.parametrize("filter", [
    between(metadata("length"), ge="short"),
    between({"entity": "record", "property": "inserted_at"}, ge="yesterday"),
    between({"entity": "record", "property": "status"}, ge="a"),
    between(STATUS, ge="a"),
], ids=["no number", "no time", "no range", "no range of status"])  # fmt: skip
def test_what_makes_no_sense_is_refused_with_words(held: SimpleNamespace, filter: Body) -> None:
    with held.argilla.as_user("owner") as owner:
        reply = owner.post(f"/api/v1/datasets/{held.id}/records/search", json={"filters": {"and": [filter]}})
    assert reply.status_code == 422
    assert len(reply.text) > 30


def test_search_by_vectors_is_refused_with_words(held: SimpleNamespace) -> None:
    import argilla as rg

    settings = rg.Settings(
        fields=[rg.TextField("t")], questions=[rg.LabelQuestion("q", labels=["a", "b"])], vectors=[rg.VectorField("v", 2)]
    )
    dataset = rg.Dataset(name="with vectors", workspace=held.argilla.workspace, client=held.dataset._client, settings=settings)
    dataset.create()
    try:
        dataset.records.log([rg.Record(fields={"t": "x"}, vectors={"v": [1.0, 2.0]})])
        with held.argilla.as_user("owner") as owner:
            body = {"query": {"vector": {"name": "v", "value": [1.0, 2.0]}}}
            reply = owner.post(f"/api/v1/datasets/{dataset.id}/records/search", json=body)
        assert reply.status_code == 422
        assert "Elasticsearch" in reply.text
    finally:
        dataset.delete()


def test_records_by_the_client_of_argilla(held: SimpleNamespace) -> None:
    import argilla as rg

    query = rg.Query(query="river", filter=rg.Filter([("metadata.length", ">=", 3), ("response.status", "==", "pending")]))
    expected = {r.id for r in held.records if has(r, "river") and within(r.length, 3, 99) and not r.answers}
    assert {record.id for record in held.dataset.records(query)} == expected
