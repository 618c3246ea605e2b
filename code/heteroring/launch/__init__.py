"""Launching: start a task on N ranks, watch them, and end them together."""
