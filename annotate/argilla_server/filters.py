"""The filters and sorts of Argilla's search, as conditions and values in SQLAlchemy over the server's own tables; values are always
bound.

Runs inside the server's environment, the only one where Argilla's server can be imported. Stored JSON is read by SQLite's
json_each, which gives a row for a plain value and one for each member of a list: so "one of the values" means the same for both.
"""

# pyright: reportMissingImports=false

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from typing import Any
from uuid import UUID

if find_spec("argilla_server") is not None:
    from argilla_server.errors.future import UnprocessableEntityError
    from argilla_server.models import Question, Record, Response, Suggestion
    from argilla_server.search_engine import base
    from sqlalchemy import Text, and_, func, or_, select, true, type_coerce

NUMBERS = ("integer", "real")
SUGGESTED = ("value", "score", "agent", "type")
DATES = ("inserted_at", "updated_at")


def refused(message: str) -> Exception:
    """The error that the server answers as 422 with our words."""
    return UnprocessableEntityError(message)


def path_to(*names: str) -> str:
    """The path of SQLite to a member of a JSON object.

    >>> path_to("grade", "value")
    '$."grade"."value"'
    """
    return "$" + "".join(f'."{name}"' for name in names)


def each_of(column: Any, path: str) -> Any:
    """The values that stand at a path of a JSON column, one a row, with their JSON type; none where nothing stands there."""
    return func.json_each(column, path).table_valued("value", "type")


def condition_of(filter: Any) -> Any:
    """A filter of `argilla_server.search_engine.base` as a condition on a record."""
    if isinstance(filter, base.AndFilter):
        return and_(*(condition_of(one) for one in filter.filters))
    scope = filter.scope
    if isinstance(scope, base.MetadataFilterScope):
        return _metadata_condition(filter)
    if isinstance(scope, base.SuggestionFilterScope):
        return _suggestion_condition(filter)
    if isinstance(scope, base.ResponseFilterScope):
        return _answer_condition(filter) if scope.question else _status_condition(filter)
    return _record_condition(filter)


def _metadata_condition(filter: Any) -> Any:
    each = each_of(Record.metadata_, path_to(filter.scope.metadata_property))
    return select(1).select_from(each).where(_holds(each, filter)).correlate(Record).exists()


def _suggestion_condition(filter: Any) -> Any:
    found, name = _suggestions(filter.scope).correlate(Record), filter.scope.property
    if name in ("value", "score"):
        each = each_of(getattr(Suggestion, name), path_to())
        return found.join(each, true()).where(_holds(each, filter)).exists()
    if not hasattr(filter, "values"):
        raise refused(f"suggestions have no range of {name}; give values, or a range of value or score")
    return found.where(_as_text(getattr(Suggestion, name)).in_(filter.values)).exists()


def _suggestions(scope: Any) -> Any:
    """The suggestions that a record has for the question."""
    if scope.property not in SUGGESTED:
        raise refused(f"suggestions have no {scope.property}; take one of {', '.join(SUGGESTED)}")
    found = select(Suggestion.id).join(Question, Question.id == Suggestion.question_id)
    return found.where(Suggestion.record_id == Record.id, Question.name == scope.question)


def _responses(scope: Any) -> Any:
    """The responses that a record has, of the user where one is given."""
    found = select(Response.id).where(Response.record_id == Record.id)
    return found if scope.user is None else found.where(Response.user_id == scope.user.id)


def _answer_condition(filter: Any) -> Any:
    """One response answers the question with one of the values or within the range."""
    each = each_of(Response.values, path_to(filter.scope.question, "value"))
    return _responses(filter.scope).join(each, true()).where(_holds(each, filter)).correlate(Record).exists()


def _status_condition(filter: Any) -> Any:
    """By status of the user's response, or of anybody's where no user is given; pending: there is none."""
    if filter.scope.property != "status" or not hasattr(filter, "values"):
        raise refused("responses can be filtered by status (pending, draft, submitted, discarded), or by a question's values")
    statuses = {str(value) for value in filter.values}
    responses = _responses(filter.scope).correlate(Record)
    wanted = responses.where(_as_text(Response.status).in_(statuses - {"pending"})).exists()
    return or_(wanted, ~responses.exists()) if "pending" in statuses else wanted


def _record_condition(filter: Any) -> Any:
    name = str(filter.scope.property)
    column = _as_text(Record.status) if name == "status" else getattr(Record, name)
    if hasattr(filter, "values"):
        return column.in_(
            _known(filter.values, UUID) if name == "id" else _moments(filter.values) if name in DATES else filter.values
        )
    if name not in DATES:
        raise refused(f"records have no range of {name}; give values, or a range of {' or '.join(DATES)}")
    bounds = [column >= moment(filter.ge)] if filter.ge is not None else []
    return and_(*bounds, *([column <= moment(filter.le, last=True)] if filter.le is not None else []))


def _holds(each: Any, filter: Any) -> Any:
    """One value is among the wanted ones (which always come as text), or a number within the range."""
    numeric = each.c.type.in_(NUMBERS)
    if hasattr(filter, "values"):
        numbers = _known(filter.values, float)
        return or_(and_(each.c.type == "text", each.c.value.in_(filter.values)), and_(numeric, each.c.value.in_(numbers)))
    bounds = [(filter.ge, "__ge__"), (filter.le, "__le__")]
    return and_(numeric, *(getattr(each.c.value, compare)(_number(bound)) for bound, compare in bounds if bound is not None))


def sort_value(scope: Any, descending: bool) -> Any:
    """What a record is sorted by: of several values the smallest, or the largest where descending; of several responses the
    mean."""
    of_several = func.max if descending else func.min
    if isinstance(scope, base.RecordFilterScope):
        return _as_text(Record.status) if scope.property == "status" else getattr(Record, str(scope.property))
    if isinstance(scope, base.MetadataFilterScope):
        each = each_of(Record.metadata_, path_to(scope.metadata_property))
        found, value = select(1).select_from(each), of_several(each.c.value)
    elif isinstance(scope, base.SuggestionFilterScope):
        found = _suggestions(scope)
        value = getattr(Suggestion, scope.property)
        if scope.property in ("value", "score"):
            each = each_of(value, path_to())
            found, value = found.join(each, true()), of_several(each.c.value)
    elif scope.question:
        each = each_of(Response.values, path_to(scope.question, "value"))
        # Labels have no mean; Elasticsearch refuses to sort by them.
        mean = func.avg(each.c.value).filter(each.c.type.in_(NUMBERS))
        found, value = _responses(scope).join(each, true()), func.coalesce(mean, of_several(each.c.value))
    else:
        found, value = _responses(scope), of_several(_as_text(Response.status))
    return found.with_only_columns(value).correlate(Record).scalar_subquery()


def moment(given: Any, last: bool = False) -> datetime:
    """A time as the tables hold it, UTC without a zone, from ISO 8601 or milliseconds since 1970. last: of a day its end.

    >>> moment("2026-01-31T12:00:00+02:00"), moment("2026-01-31", last=True)
    (datetime.datetime(2026, 1, 31, 10, 0), datetime.datetime(2026, 1, 31, 23, 59, 59, 999999))
    """
    text = str(given)
    try:
        if isinstance(given, int | float):
            return datetime.fromtimestamp(given / 1000, UTC).replace(tzinfo=None)
        parsed = datetime.fromisoformat(text)
    except (ValueError, OverflowError, OSError):
        raise refused(f"{text!r} is no time; write 2026-01-31 or 2026-01-31T12:00:00+00:00") from None
    if last and len(text) == len("2026-01-31"):
        return parsed + timedelta(days=1, microseconds=-1)
    return parsed.astimezone(UTC).replace(tzinfo=None) if parsed.tzinfo else parsed


def _moments(values: Sequence[str]) -> list[datetime]:
    return [moment(value) for value in values]


def _number(bound: Any) -> float:
    try:
        return float(bound)
    except ValueError:
        raise refused(f"{bound!r} is no number; ranges of metadata, scores and grades take numbers") from None


def _known(values: Sequence[str], kind: Any) -> list[Any]:
    """The values that are of this kind; the others match nothing."""
    found = []
    for value in values:
        try:
            found.append(kind(value))
        except ValueError:
            continue
    return found


def _as_text(column: Any) -> Any:
    """A column of an enumeration as the text it holds: a value outside of it then matches nothing instead of failing."""
    return type_coerce(column, Text)
