"""Launching: start a task on N ranks of one machine, watch them, and end them together."""
