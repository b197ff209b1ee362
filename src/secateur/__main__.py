"""Let `python -m secateur` be the command line."""

from .cli import main

main()
