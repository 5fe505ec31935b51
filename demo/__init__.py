"""`make demo`: the whole system at work on one machine, with every claim about it checked."""
