"""How long a GPU rests between timed calls. Needs no torch."""

# A GPU rests after a call for as long as that took, and for no longer than this. Attention runs a whole GPU into its
# power limit, and the next call would be measured at whatever clock that leaves: identical calls of 25 ms differed by
# 8 % on two H200s, and by 1 % after such a rest (docs/experiments/ring.md).
LONGEST_REST_MS = 50.0
