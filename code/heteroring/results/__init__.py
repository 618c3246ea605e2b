"""Results as files hold them: rows, provenance, metrics and tables. Imports no torch, allocator or benchmark."""
