"""Which GPUs of a fleet, how many tokens each, and what it will take: fleet, plan, simulate.

Also `rebalance`, which splits the next chunk by what ranks took for the last ones.
"""
