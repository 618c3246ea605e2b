"""The ways that keys and values take from rank to rank."""
