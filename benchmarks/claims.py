"""Do margins help? The paper's claims with controls: on real graded sets, on planted ones, and with pretrained models.

    python benchmarks/claims.py [--part sets|planted|pretrained] [--set NAME] [--data FOLDER] [--out FILE] [--page] [--quick] [--json]

Every figure is a difference on held-out prompts, with its 95% interval, to Bradley–Terry, to matched smoothing (every target at its mean)
and to shuffled margins (the same targets, permuted). The full run writes docs/claims.json; --page makes docs/when-margins-help.md and its
plots of that file. The graded sets are read from the folder that --data or MMPO_REAL_DATA names.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if "--quick" in sys.argv:  # before numpy is there: on small sets threads wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests" / folder) for folder in ("support", "support/argilla")]
DOCS = HERE.parent / "docs"
MEAN_TARGET = 0.9
"""Of the MMPO that the ratios are about; the page has all."""
COMPARED = {"bt": "minus_bradley_terry", "matched": "minus_matched", "shuffled": "minus_shuffled"}
RATIOS = (("accuracy", "bt"), ("accuracy", "matched"), ("accuracy", "shuffled"), ("nll", "matched"), ("ece", "matched"))
KEPT = (
    "prompts", "pairs", "ties", "completions", "width", "seeds", "r2", "r2_95", "length", "beyond_sign", "baseline", "effects",
    "margins_add", "learning_curve", "recommended", "regret",
)  # fmt: skip


def on_sets(names: list[str], folder: Path, quick: bool) -> dict[str, Any]:
    """Part (a): what `mmpo advise` measures on each graded set, with frozen features."""
    from claims_sets import SETS, pairs_of

    from mmpo.train.advise import advise

    found = {}
    for name in names:
        begun = time.process_time()
        summary = advise(pairs_of(name, folder), seeds=2 if quick else 5)
        seconds = time.process_time() - begun
        found[name] = {"what": SETS[name].what, **{key: summary[key] for key in KEPT}, "cpu_seconds": seconds}
        told = f"{summary['prompts']} prompts, R² {summary['r2']:.2f}; {_line(mmpo_of(summary))}; {seconds:.0f} CPU s"
        print(f"{name}: {told}", flush=True)
    return found


def mmpo_of(summary: dict[str, Any], mean_target: float = MEAN_TARGET) -> dict[str, Any]:
    """The effect of MMPO with plain targets at a mean target, ties kept where there are any."""
    rows = [
        row
        for row in summary["effects"]
        if row["objective"] == "mmpo" and row["gamma"] and row["options"].get("target") == "plain"
        and abs(row["mean_target"] - mean_target) < 1e-3
    ]  # fmt: skip
    return rows[-1]


def _line(row: dict[str, Any]) -> str:
    return ", ".join(
        "− {} {:+.2f} [{:+.2f}, {:+.2f}]".format(name, *(100 * value for value in row[key]["accuracy"]))
        for name, key in COMPARED.items()
    )


def ratios_of(sets: dict[str, Any]) -> dict[str, float]:
    """Differences of MMPO at mean target .9 by set, and their mean over sets."""
    ratios: dict[str, float] = {}
    for measure, other in RATIOS:
        values = {name: mmpo_of(summary)[COMPARED[other]][measure][0] for name, summary in sets.items()}
        if values:
            ratios[f"{measure}_mmpo_minus_{other}"] = sum(values.values()) / len(values)
        ratios |= {f"{measure}_mmpo_minus_{other}:{name.upper()}": value for name, value in values.items()}
    return ratios


def rounded(value: Any) -> Any:
    """Figures to six decimals, for a file that is read and compared."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return round(value, 6) if isinstance(value, float) else value


def pretrained() -> Callable[[bool], Any] | None:
    """Part (c), where its module and its models are."""
    try:
        import claims_pretrained
    except ModuleNotFoundError:
        return None
    return claims_pretrained.run if claims_pretrained.available() else None


def main() -> None:
    """The command."""
    from claims_planted import run as planted
    from claims_sets import QUICK, SETS

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--part", action="append", choices=["sets", "planted", "pretrained"], help="this part only; may be given again"
    )
    parser.add_argument("--set", action="append", choices=list(SETS), help="this graded set only; may be given again")
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("MMPO_REAL_DATA"), help="folder of graded sets (MMPO_REAL_DATA)"
    )
    parser.add_argument("--out", type=Path, default=DOCS / "claims.json", help="what a full run writes (docs/claims.json)")
    parser.add_argument(
        "--page", action="store_true", help="write docs/when-margins-help.md and its plots of that file, and run nothing"
    )
    parser.add_argument("--quick", action="store_true", help="about two minutes: small sets, fewer seeds; writes nothing")
    parser.add_argument("--json", action="store_true", help="print the ratios as the last line")
    options = parser.parse_args()
    if options.page:
        from claims_page import write_page

        print(write_page(json.loads(options.out.read_text(encoding="utf-8")), DOCS))
        return
    parts = options.part or ["sets", "planted", "pretrained"]
    known = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() and not options.quick else {}
    begun = time.process_time()
    if "sets" in parts:
        if options.data and options.data.is_dir():
            names = options.set or list(QUICK if options.quick else SETS)
            known["sets"] = {**known.get("sets", {}), **on_sets(names, options.data, options.quick)}
        else:
            print("sets: skipped, neither --data nor MMPO_REAL_DATA names a folder of graded sets")
    if "planted" in parts:
        known["planted"] = planted(options.quick)
        for row in known["planted"]:
            of = row["mmpo"]["0.75"]
            print(f"planted R² {row['r2']}: mean target .75 {_line(of)}", flush=True)
    if "pretrained" in parts:
        part = pretrained()
        if part is None:
            print("pretrained: skipped, its models are not here (make models)")
        else:
            known["pretrained"] = part(options.quick)
    print(f"{', '.join(parts)}: {time.process_time() - begun:.0f} CPU s")
    known["ratios"] = ratios_of(known.get("sets", {}))
    if not options.quick:
        text = json.dumps(rounded(known), ensure_ascii=False, separators=(",", ":")).replace("},{", "},\n{")
        options.out.write_text(text + "\n", encoding="utf-8")
    if options.json:
        print(json.dumps({"ratios": known["ratios"]}))


if __name__ == "__main__":
    main()
