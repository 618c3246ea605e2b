"""The command line, one file per command with much to it."""
