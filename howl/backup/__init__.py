"""Backing up and restoring what stays: the record, the files that tasks left behind, the server's configuration."""
