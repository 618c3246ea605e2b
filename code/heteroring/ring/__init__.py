"""Ring attention and decode over ranks: partitions of the sequence, the schedule of ring steps, and KV transports."""
