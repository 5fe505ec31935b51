"""Programs that tasks run: started, watched, their output read, and ended with all their children."""
