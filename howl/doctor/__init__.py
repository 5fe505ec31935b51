"""`howl doctor`: checks that everything this machine needs is there, works, and is set up as it should be."""
