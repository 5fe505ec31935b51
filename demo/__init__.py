"""`make demo`: the whole system does its job on one machine, and every claim about it is checked."""
