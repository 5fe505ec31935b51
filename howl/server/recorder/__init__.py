"""Outcomes become rows: the streams they come in, and what a credential may tell and how much."""
