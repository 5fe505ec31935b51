"""Backup and restore of what lasts: the record, the files that tasks left behind, the server's configuration."""
