"""Files that tasks leave: how they are stored, and how to get them."""
