"""Bursts: workers started on GitHub, or as processes of this machine."""
