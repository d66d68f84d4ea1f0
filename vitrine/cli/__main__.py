"""`python -m vitrine.cli`, the same as `vitrine`."""

from vitrine.cli import main

main()
