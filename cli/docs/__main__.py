"""`python -m mmpo.cli.docs`."""

from mmpo.cli.docs.pages import main

main()
