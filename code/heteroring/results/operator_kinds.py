"""The kinds of operators that profiles hold."""

# Square matmuls, causal attention, folds of FOLD_KEYS keys into a running result, causal attention joined with
# FOLD_KEYS more keys in one pass, FMS's attention layer, and a whole transformer block.
KINDS = ("matmul", "attention", "fold", "join", "layer", "block")
FOLD_KEYS = 128
