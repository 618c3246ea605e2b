"""One operator at a time on the GPU, beside its limit."""
