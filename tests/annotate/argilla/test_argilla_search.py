"""The embedded Argilla's search against a plain computation over the same records, through the real server's own interface.

Filters, texts and sorts stand beside the rule that each stands for: plain Python over the record in memory, which says what must be found.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from argilla_fixture import Argilla
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

GRADES = ["A better", "tie", "B better"]
TOPICS = ["math", "code", "law"]
WORDS = ["Über", "river", "RIVERBED", "50%_sure", "don't", "'; SELECT note; --", "naïve", "日本語"]
RATERS = ("anna", "ben")
RECORDS = 60
OURS = ("record-3", "record-44")
STATUSES = ["submitted", "draft", "discarded"]


@dataclass
class Held:
    """A record as the test made it: what the server must find it by."""

    id: str
    text: str
    chat: str
    topic: list[str]
    length: int | None
    margin: float | None
    suggestion: str | None
    score: float | None
    agent: str | None
    answers: dict[str, tuple[str, str, int]]

    def pushed(self) -> Any:
        """The record for Argilla's own client."""
        import argilla as rg

        metadata = {"topic": self.topic or None, "length": self.length, "margin": self.margin}
        suggestions = [rg.Suggestion("grade", self.suggestion, score=self.score, agent=self.agent)] if self.suggestion else []
        fields = {"text": self.text, "chat": [{"role": "user", "content": self.chat}]}
        kept = {name: value for name, value in metadata.items() if value is not None}
        return rg.Record(id=self.id, fields=fields, metadata=kept, suggestions=suggestions)


def make(index: int, rng: random.Random) -> Held:
    maybe = lambda value: None if rng.random() < 0.25 else value  # noqa: E731
    suggestion = maybe(rng.choice(GRADES))
    answers = {
        rater: (status, rng.choice(GRADES), rng.randint(1, 5)) for rater in RATERS if (status := maybe(rng.choice(STATUSES)))
    }
    return Held(
        id=f"record-{index}", text=" ".join(rng.sample(WORDS, 2)), chat=" ".join(rng.sample(WORDS, 2)),
        topic=rng.sample(TOPICS, rng.randint(0, 2)), length=maybe(rng.randint(-3, 12)), margin=maybe(rng.randint(0, 8) / 4),
        suggestion=suggestion, score=maybe(rng.randint(0, 4) / 4) if suggestion else None,
        agent=rng.choice(["judge-a", "judge-b"]) if suggestion else None, answers=answers,
    )  # fmt: skip


@pytest.fixture(scope="module")
def held(argilla: Argilla) -> Iterator[SimpleNamespace]:
    """A dataset of 60 records on the server (min_submitted 2), and the same records in memory, in the order of pushing."""
    import argilla as rg

    rng = random.Random(7)
    records = [make(index, rng) for index in range(RECORDS)]
    client = argilla.client()
    dataset = rg.Dataset(name="searched", workspace=argilla.workspace, client=client, settings=rg.Settings(
        fields=[rg.TextField("text"), rg.ChatField("chat")],
        questions=[rg.LabelQuestion("grade", labels=GRADES), rg.RatingQuestion("stars", values=[1, 2, 3, 4, 5])],
        metadata=[rg.TermsMetadataProperty("topic"), rg.IntegerMetadataProperty("length"), rg.FloatMetadataProperty("margin")],
        distribution=rg.TaskDistribution(min_submitted=2),
    ))  # fmt: skip
    dataset.create()
    dataset.records.log([record.pushed() for record in records], batch_size=25)
    server = {str(record.id): str(record._server_id) for record in dataset.records}
    for rater in RATERS:
        with argilla.as_user(rater) as user:
            for record in records:
                if rater in record.answers:
                    status, grade, stars = record.answers[rater]
                    body = {"status": status, "values": {"grade": {"value": grade}, "stars": {"value": stars}}}
                    user.post(f"/api/v1/records/{server[record.id]}/responses", json=body).raise_for_status()
    yield SimpleNamespace(id=str(dataset.id), dataset=dataset, records=records, server=server, argilla=argilla)
    dataset.delete()


def search(held: SimpleNamespace, body: dict[str, Any], user: str = "owner", **page: int) -> tuple[list[str], int]:
    """(our ids of a page, total), as the owner over all answers, or as an annotator over the own ones."""
    path = f"/api/v1/{'' if user == 'owner' else 'me/'}datasets/{held.id}/records/search"
    with held.argilla.as_user(user) as client:
        reply = client.post(path, json=body, params={"limit": 1000, **page}).raise_for_status().json()
    return [item["record"]["external_id"] for item in reply["items"]], reply["total"]


Body = dict[str, Any]
Rule = Callable[[Held], bool]


def terms(scope: Body, *values: Any) -> Body:
    return {"type": "terms", "scope": scope, "values": list(values)}


def between(scope: Body, ge: Any = None, le: Any = None) -> Body:
    return {"type": "range", "scope": scope, **({} if ge is None else {"ge": ge}), **({} if le is None else {"le": le})}


def metadata(name: str) -> Body:
    return {"entity": "metadata", "metadata_property": name}


def any_is(record: Held, status: str) -> bool:
    return any(one == status for one, _, _ in record.answers.values())


def within(value: float | None, low: float, high: float) -> bool:
    return value is not None and low <= value <= high


SUGGESTED = {"entity": "suggestion", "question": "grade"}
GRADED, STARS = ({"entity": "response", "question": name} for name in ("grade", "stars"))
STATUS = {"entity": "response", "property": "status"}
COMPLETE: Rule = lambda record: sum(status == "submitted" for status, _, _ in record.answers.values()) >= 2  # noqa: E731
FILTERS: dict[str, tuple[Body, Rule]] = {
    "one topic": (terms(metadata("topic"), "math"), lambda r: "math" in r.topic),
    "two topics": (terms(metadata("topic"), "math", "law"), lambda r: bool({"math", "law"} & set(r.topic))),
    "no such topic": (terms(metadata("topic"), "'quoted' --"), lambda r: False),
    "a length as text": (terms(metadata("length"), "5", 7, "x"), lambda r: r.length in (5, 7)),
    "lengths": (between(metadata("length"), -1, 6), lambda r: within(r.length, -1, 6)),
    "margins from": (between(metadata("margin"), ge=0.75), lambda r: within(r.margin, 0.75, 99)),
    "margins to": (between(metadata("margin"), le=0.75), lambda r: within(r.margin, -99, 0.75)),
    "suggested": (terms(SUGGESTED, "tie"), lambda r: r.suggestion == "tie"),
    "suggested score": (between(SUGGESTED | {"property": "score"}, 0.25, 0.5), lambda r: within(r.score, 0.25, 0.5)),
    "suggested by": (terms(SUGGESTED | {"property": "agent"}, "judge-a"), lambda r: r.agent == "judge-a"),
    "suggested type": (terms(SUGGESTED | {"property": "type"}, "human", "nonsense"), lambda r: False),
    "graded": (terms(GRADED, "tie", "B better"), lambda r: any(grade != "A better" for _, grade, _ in r.answers.values())),
    "stars": (between(STARS, 2, 3), lambda r: any(2 <= stars <= 3 for _, _, stars in r.answers.values())),
    "a star": (terms(STARS, "4"), lambda r: any(stars == 4 for _, _, stars in r.answers.values())),
    "pending": (terms(STATUS, "pending"), lambda r: not r.answers),
    "drafts": (terms(STATUS, "draft"), lambda r: any_is(r, "draft")),
    "pending or submitted": (terms(STATUS, "pending", "submitted"), lambda r: not r.answers or any_is(r, "submitted")),
    "completed": (terms({"entity": "record", "property": "status"}, "completed", "nonsense"), COMPLETE),
    "not completed": (terms({"entity": "record", "property": "status"}, "pending"), lambda r: not COMPLETE(r)),
    "our ids": (terms({"entity": "record", "property": "external_id"}, "record-3", "record-44"), lambda r: r.id in OURS),
    "since then": (between({"entity": "record", "property": "inserted_at"}, ge="2020-01-01"), lambda r: True),
    "until then": (between({"entity": "record", "property": "updated_at"}, le="2020-01-01"), lambda r: False),
    "a span of time": (between({"entity": "record", "property": "inserted_at"}, "2020-01-01T00:00:00Z", "2199-12-31"), lambda r: True),
}  # fmt: skip


def has(record: Held, *words: str) -> bool:
    text, chat = record.text.casefold(), record.chat.casefold()
    return all(word.casefold() in text or word.casefold() in chat for word in words)


TEXTS: dict[str, tuple[Body, Rule]] = {
    "upper or lower case": ({"q": "über"}, lambda r: has(r, "Über")),
    "inside a word": ({"q": "river"}, lambda r: has(r, "river")),
    "all words, in any field": ({"q": "river naïve"}, lambda r: has(r, "river", "naïve")),
    "one field": ({"q": "naïve", "field": "text"}, lambda r: "naïve" in r.text),
    "the chat": ({"q": "naïve", "field": "chat"}, lambda r: "naïve" in r.chat),
    "roles are no text": ({"q": "user"}, lambda r: False),
    "not": ({"q": "naïve -river"}, lambda r: has(r, "naïve") and not has(r, "river")),
    "either": ({"q": "日本 | don't"}, lambda r: has(r, "日本") or has(r, "don't")),
    "a phrase": ({"q": '"select  note"'}, lambda r: has(r, "select note")),
    "no wild cards": ({"q": "50%_s"}, lambda r: has(r, "50%_sure")),
    "quotes and a semicolon": ({"q": "';"}, lambda r: has(r, "';")),
    "blank": ({"q": "  "}, lambda r: True),
}


SORTS: dict[str, tuple[Body, Callable[[Held], Any]]] = {
    "length": (metadata("length"), lambda r: r.length),
    "margin": (metadata("margin"), lambda r: r.margin),
    "suggestion's score": (SUGGESTED | {"property": "score"}, lambda r: r.score),
    "suggestion": (SUGGESTED, lambda r: r.suggestion),
    "suggestion's agent": (SUGGESTED | {"property": "agent"}, lambda r: r.agent),
    "mean of the stars": (STARS, lambda r: sum(s for _, _, s in r.answers.values()) / len(r.answers) if r.answers else None),
    "our id": ({"entity": "record", "property": "external_id"}, lambda r: r.id),
    "status": ({"entity": "record", "property": "status"}, lambda r: "completed" if COMPLETE(r) else "pending"),
}


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        *(pytest.param({"filters": {"and": [filter]}}, rule, id=name) for name, (filter, rule) in FILTERS.items()),
        *(pytest.param({"query": {"text": query}}, rule, id=name) for name, (query, rule) in TEXTS.items()),
    ],
)
def test_a_filter_and_a_text_query_find_what_they_say(held: SimpleNamespace, body: Body, rule: Rule) -> None:
    expected = [record.id for record in held.records if rule(record)]
    assert search(held, body) == (expected, len(expected))


@pytest.mark.slow
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


OWN: dict[str, tuple[list[Body], Callable[[str, str, int], bool]]] = {
    **{"-".join(wanted): ([terms(STATUS, *wanted)], lambda status, *_, wanted=wanted: status in wanted)
       for wanted in (["pending"], ["submitted"], ["draft", "discarded"], ["pending", "discarded"])},
    "grade": ([terms(GRADED, "tie"), between(STARS, 3, 5)], lambda _, grade, stars: grade == "tie" and stars >= 3),
}  # fmt: skip


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("rater", RATERS)
def test_an_annotator_sees_and_filters_by_the_own_answers_only(held: SimpleNamespace, rater: str, name: str) -> None:
    filters, rule = OWN[name]
    found, total = search(held, {"filters": {"and": filters}}, user=rater)
    expected = sorted(record.id for record in held.records if rule(*record.answers.get(rater, ("pending", "", 0))))
    assert sorted(found) == expected and total == len(found)


def test_each_annotator_has_an_order_of_their_own_that_stays(held: SimpleNamespace) -> None:
    orders = [search(held, {}, user=rater)[0] for rater in (*RATERS, *RATERS)]
    assert orders[:2] == orders[2:] and orders[0] != orders[1]
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
    assert (found["total"], found["completed"], found["pending"]) == (RECORDS, complete, RECORDS - complete) and complete > 0
    assert held.dataset.progress()["completed"] == complete
    for rater in RATERS:
        own = Counter(record.answers.get(rater, ("pending",))[0] for record in held.records)
        with held.argilla.as_user(rater) as user:
            mine = user.get(f"/api/v1/me/datasets/{held.id}/metrics").raise_for_status().json()["responses"]
        assert mine == {"total": RECORDS, **{status: own[status] for status in (*STATUSES, "pending")}}


def test_metrics_of_metadata(held: SimpleNamespace) -> None:
    with held.argilla.as_user("owner") as owner:
        properties = owner.get(f"/api/v1/me/datasets/{held.id}/metadata-properties").raise_for_status().json()["items"]
        paths = {one["name"]: f"/api/v1/metadata-properties/{one['id']}/metrics" for one in properties}
        metrics = {name: owner.get(path).raise_for_status().json() for name, path in paths.items()}
    topics = Counter(topic for record in held.records for topic in record.topic)
    assert metrics["topic"]["total"] == topics.total()
    found = [(value["term"], value["count"]) for value in metrics["topic"]["values"]]
    assert dict(found) == topics and found == sorted(found, key=lambda one: -one[1])
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
    assert reply.status_code == 422 and len(reply.text) > 30


def test_search_by_vectors_is_refused_with_words(held: SimpleNamespace) -> None:
    import argilla as rg

    asks = {"fields": [rg.TextField("t")], "questions": [rg.LabelQuestion("q", labels=["a", "b"])]}
    settings = rg.Settings(**asks, vectors=[rg.VectorField("v", 2)])
    dataset = rg.Dataset(name="with vectors", workspace=held.argilla.workspace, client=held.dataset._client, settings=settings)
    dataset.create()
    try:
        dataset.records.log([rg.Record(fields={"t": "x"}, vectors={"v": [1.0, 2.0]})])
        with held.argilla.as_user("owner") as owner:
            body = {"query": {"vector": {"name": "v", "value": [1.0, 2.0]}}}
            reply = owner.post(f"/api/v1/datasets/{dataset.id}/records/search", json=body)
        assert reply.status_code == 422 and "Elasticsearch" in reply.text
    finally:
        dataset.delete()


def test_records_by_the_client_of_argilla(held: SimpleNamespace) -> None:
    import argilla as rg

    query = rg.Query(query="river", filter=rg.Filter([("metadata.length", ">=", 3), ("response.status", "==", "pending")]))
    expected = {r.id for r in held.records if has(r, "river") and within(r.length, 3, 99) and not r.answers}
    assert {record.id for record in held.dataset.records(query)} == expected
