"""Programs that tasks run: starting and watching them, reading their output, and ending them with all children."""
