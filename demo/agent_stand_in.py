"""A stand-in for a coding agent: all it can do is count the lines of the Python files in the folders a prompt names.

`python agent_stand_in.py FOLDER PROMPT`; paths in the prompt are below the folder. A script for workers: it imports
the standard library alone.
"""

import sys
from pathlib import Path


def main(folder: str, prompt: str) -> int:
    """The exit status: 1 when the prompt names nothing that can be counted."""
    words = (word.strip(".,:;") for word in prompt.split())
    named = [word for word in words if "/" in word and (Path(folder) / word).is_dir()]
    for name in named:
        files = list((Path(folder) / name).glob("*.py"))
        lines = sum(len(file.read_text("utf-8").splitlines()) for file in files)
        sys.stdout.write(f"The stand-in for an agent counted {lines:,} lines in {len(files)} files of {name}.\n")
    return 0 if named else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
