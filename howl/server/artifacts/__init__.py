"""Files that tasks leave: their rows, room for them, their uploads, and how long they are kept."""
