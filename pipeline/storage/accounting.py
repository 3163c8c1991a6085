"""Counting what every stage does with every unit, so that nothing vanishes: in + created = out + merged + dropped by reason."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass
class UnitCounts:
    """The counts of one unit (line, grade, completion, prompt or pair) at one stage. repaired: how many of `out` were mended, by what."""

    into: int = 0
    created: int = 0
    out: int = 0
    merged: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)

    @property
    def balanced(self) -> bool:
        """Whether everything that came in or was made is accounted for."""
        return self.into + self.created == self.out + self.merged + self.dropped.total()


class RowAccounting:
    """The counts of a build by stage and unit; those of parallel parts add up."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str], UnitCounts] = {}

    def count(
        self,
        stage: str,
        unit: str,
        *,
        dropped: Mapping[str, int] | None = None,
        repaired: Mapping[str, int] | None = None,
        **counts: int,
    ) -> None:
        """Add to the counts (into, created, out, merged, and dropped and repaired by reason) of a unit at a stage."""
        entry = self.entries.setdefault((stage, unit), UnitCounts())
        for name, count in counts.items():
            setattr(entry, name, getattr(entry, name) + int(count))
        entry.dropped.update({reason: int(n) for reason, n in (dropped or {}).items()})
        entry.repaired.update(repaired or {})

    def add(self, other: "RowAccounting") -> None:
        """Add the counts of another part."""
        for (stage, unit), entry in other.entries.items():
            self.count(stage, unit, **vars(entry))

    def check(self) -> None:
        """Raise RuntimeError (a bug of ours, never the user's) where an entry does not balance."""
        for (stage, unit), entry in self.entries.items():
            if not entry.balanced:
                raise RuntimeError(f"counts do not balance at stage {stage!r} for unit {unit!r}: {entry}; please report this")

    def dropped(self) -> dict[str, int]:
        """How much was dropped for each reason, over all stages and units, most first."""
        return _most_first(entry.dropped for entry in self.entries.values())

    def repaired(self) -> dict[str, int]:
        """How much was repaired and kept for each reason, most first."""
        return _most_first(entry.repaired for entry in self.entries.values())

    def as_json(self) -> dict[str, dict[str, dict[str, object]]]:
        """{stage: {unit: {"in", "created", "out", "merged", "dropped"}}}, as the manifest keeps it; "repaired" where anything was."""
        result: dict[str, dict[str, dict[str, object]]] = {}
        for (stage, unit), entry in self.entries.items():
            counts: dict[str, object] = {"in" if name == "into" else name: count for name, count in vars(entry).items()}
            counts |= {name: dict(sorted(getattr(entry, name).items())) for name in ("dropped", "repaired")}
            result.setdefault(stage, {})[unit] = {name: count for name, count in counts.items() if count or name != "repaired"}
        return result


def _most_first(counters: Iterable[Counter[str]]) -> dict[str, int]:
    return dict(sorted(sum(counters, Counter()).items(), key=lambda item: (-item[1], item[0])))
