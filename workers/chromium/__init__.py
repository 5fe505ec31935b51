"""Web browsers that tasks drive."""
