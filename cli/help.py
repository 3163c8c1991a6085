"""One line of help for every option of a build, and the flags whose name isn't the field's.

Training options carry their own help. docs/cli.md is generated from both.
"""

__all__ = ["FLAGS", "HELP"]

FLAGS: dict[str, list[str]] = {
    "evidence": ["--from", "--evidence"],
    "kinds": ["--kind", "--kinds"],
    "raters": ["--rater"],
    "aspects": ["--aspect", "--aspects"],
    "merge_raters": ["--raters", "--merge-raters"],
    "rater": ["--rater-name"],
    "kind": ["--rater-kind"],
    "rubrics": ["--rubric", "--rubrics"],
}
"""Field name → flags. In recipes the field names are the keys."""

HELP: dict[str, str] = {
    "format": "Input format; `mmpo formats` lists them, `module:function` brings your own.",
    "columns": "Names of the columns in generic files: field=column,field=column.",
    "scale": "The score scale of generic files, low:high.",
    "fix_known_defects": "Repair a format's known defects where possible, counted; without it such rows are rejected.",
    "rater": "Rater name for files that name none (the file's own name).",
    "kind": "Kind of rater for files that name none: human, ai or reward_model.",
    "extras": "Further options of the format: name=value,name=value.",
    "evidence": "Which grades make the margins: auto (ratings if there are any), ratings or comparisons.",
    "kinds": "Keep the grades of these kinds of raters only: human,ai,reward_model.",
    "raters": "Keep the grades of these raters only, separated by commas.",
    "aspects": "Keep the grades of these aspects only, separated by commas.",
    "normalise": "What is done to each grade: none, minmax, zscore, log or rank.",
    "score": "How aspects merge: overall, mean, one aspect's name, or weights a=0.65,b=0.8.",
    "merge_raters": "How raters merge: mean, median, or rater-effects (their biases and scales taken out, weighted by precision).",
    "rater_weights": "With --raters rater-effects, what a rater counts for: fitted (by its precision) or equal (without signal still 0).",
    "one_order": "Pairs that a judge answered in one order, of others in both: drop, or keep with its mean position bias taken away.",
    "strategy": "Which pairs: all, best-worst, best-random, adjacent or stratified.",
    "max_per_prompt": "Keep at most this many pairs of a prompt.",
    "min_margin": "Drop pairs whose quality margin is smaller, in margin units.",
    "ties": "Pairs with margin 0: keep or drop.",
    "max_chars": "Drop pairs with a longer text, in characters.",
    "seed": "Seed of every random choice; results don't depend on the order of the input.",
    "split": "Shares of train, validation and test, by the first user message.",
    "max_rejects": "Largest share of unreadable or invalid lines before the build is refused.",
    "feedback_only": "Stop at the FEEDBACK table: candidates and their grades, no pairs.",
    "workers": "Processes (all cores).",
}
