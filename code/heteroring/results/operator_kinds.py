"""The kinds of operators that profiles hold."""

# Square matmuls, causal attention, attention to FOLD_KEYS keys merged into a running result, causal attention fused
# with that to FOLD_KEYS more keys in one pass, FMS's attention layer, and a whole transformer block.
KINDS = ("matmul", "attention", "fold", "join", "layer", "block")
FOLD_KEYS = 128
