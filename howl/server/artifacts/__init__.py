"""Artifacts on the server's side: rows, quota, uploads and retention."""
