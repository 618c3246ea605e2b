"""One block of attention, behind one signature, and the merge of two partial results."""
