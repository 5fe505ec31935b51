"""Chords: their parts are counted in the record, and their bodies are submitted or failed."""
