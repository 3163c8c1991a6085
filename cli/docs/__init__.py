"""The pages of docs/ that are made from the code, written or compared by `python -m mmpo.cli.docs`."""

from mmpo.cli.docs.pages import commands, completions, house, page
