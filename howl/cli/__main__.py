"""`python -P -m howl.cli`: the same as `howl`, wherever scripts are installed."""

import sys

from howl.cli import main

if not sys.flags.safe_path:
    # Without -P, Python searches the current folder for modules first. Imports up to here were searched there too.
    del sys.path[0]

main(prog_name="howl")
