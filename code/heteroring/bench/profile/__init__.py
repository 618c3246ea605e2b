"""How fast one rank computes: the operators of a profile, and the run."""
