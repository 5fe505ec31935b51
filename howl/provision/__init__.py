"""Secrets, certificates, permissions and configuration of a real server, as `howl init` makes them."""
