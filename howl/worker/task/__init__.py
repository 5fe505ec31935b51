"""What a task calls while it runs: progress, lines, files, time limits."""
