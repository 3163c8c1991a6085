"""Evaluation sets as sources of pairs: what `mmpo evaluate` measures on; to look at, to judge or to decontaminate by, not to train on."""
