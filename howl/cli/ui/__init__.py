"""Helpers shared by commands: options, formats of values, and the display of long work."""
