"""Profiles of the speed of one rank: the operators that are timed, and the run."""
