"""The command line: one file per long command; fit, allocate and aggregate are in main.py."""
