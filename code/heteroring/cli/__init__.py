"""The command line: a file per long command; fit, allocate and aggregate are in main.py."""
