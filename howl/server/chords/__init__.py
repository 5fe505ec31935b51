"""Chords: their parts are counted in the record, and their bodies submitted or failed."""
