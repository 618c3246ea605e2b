"""Context parallelism: who holds which tokens, who computes what, and how KV moves."""
