"""Data in, data looked at, data out: `mmpo build` and what takes a dataset folder."""
