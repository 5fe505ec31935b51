"""`python -P -m howl.cli` is `howl`, wherever scripts are installed."""

import sys

from howl.cli import main

if not sys.flags.safe_path:
    # Without -P, Python looks for modules in the current folder first. What is imported up to here came that way too.
    del sys.path[0]

main(prog_name="howl")
