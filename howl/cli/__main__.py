"""`python -m howl.cli` is `howl`, wherever scripts are installed."""

from howl.cli import main

main(prog_name="howl")
