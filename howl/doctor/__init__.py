"""`howl doctor`: is everything that this machine needs there, well, and as it should be?"""
