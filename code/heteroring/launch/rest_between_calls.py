"""The longest rest of a GPU between timed calls. Torch-free."""

# A GPU rests after a call for as long as the call took, but no longer than this. Attention on a whole GPU reaches the
# power limit, which would lower the clock rate of the next call: identical calls of 25 ms differed by 8 % on two H200s,
# and by 1 % after such a rest (docs/experiments/ring.md).
LONGEST_REST_MS = 50.0
