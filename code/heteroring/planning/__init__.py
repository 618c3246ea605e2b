"""Which GPUs of a fleet, how many tokens each, and what it will take: fleet, plan, simulate."""
