"""Planning: which GPUs of a fleet to use, how many tokens each gets, and how long it will take.

Also `rebalance`, which splits the next chunk by the times that ranks took for the last ones.
"""
