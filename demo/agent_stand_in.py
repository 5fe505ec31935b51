"""A stand-in for a coding agent, which only counts the lines of the Python files in the folders that a prompt names.

`python agent_stand_in.py FOLDER PROMPT`; paths in the prompt are below the folder. A script for workers: it imports
only the standard library.
"""

import sys
from pathlib import Path


def main(folder: str, prompt: str) -> int:
    """Count, and return the exit status: 1 if the prompt names no folder that can be counted."""
    words = (word.strip(".,:;") for word in prompt.split())
    named = [word for word in words if "/" in word and (Path(folder) / word).is_dir()]
    for name in named:
        files = list((Path(folder) / name).glob("*.py"))
        lines = sum(len(file.read_text("utf-8").splitlines()) for file in files)
        sys.stdout.write(f"The stand-in for an agent counted {lines:,} lines in {len(files)} files of {name}.\n")
    return 0 if named else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
