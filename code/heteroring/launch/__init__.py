"""Start a task on N ranks and end them together."""
