"""Secrets, certificates, rights and configuration of a real server: what `howl init` makes."""
