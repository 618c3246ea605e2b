"""What was measured, as files hold it. Nothing here imports torch, an allocator or a benchmark."""
