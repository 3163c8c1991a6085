"""benchmarks/human.py: does margin ± 1.96 margin_se hold the true margin, on seven grades, for two, three and five raters?"""

from pathlib import Path

import numpy as np
from panels import PANELS, covered, panel

__all__ = ["run"]

WAYS = ("mean", "rater-effects")
ROW = "  {:10} {:14} {:>24} {:>12}"


def run(folder: Path, quick: bool) -> dict[str, float]:
    """Prints a row a panel and way to merge; the ratios are the shares of pairs whose interval holds the margin."""
    seeds = range(1 if quick else 5)
    print(
        f"coverage of margin ± 1.96 margin_se: 5,000 pairs, seven grades in both orders, {len(seeds)} panels each; mean (min - max)"
    )
    print(ROW.format("raters", "merged by", "holds the true margin", "se / error"))
    shares = {}
    for name, noise in PANELS.items():
        for how in WAYS:
            found = [covered(*panel(noise, len(noise) + 100 * seed), how) for seed in seeds]
            share = [one.share for one in found]
            size = float(np.mean([one.se / one.error for one in found]))
            print(ROW.format(name, how, f"{np.mean(share):.3f} ({min(share):.3f} - {max(share):.3f})", f"{size:.3f}"))
            shares[f"coverage_{name.replace(' ', '_')}_{how}"] = float(np.mean(share))
    print("  aim: .93 to .97")
    return shares
