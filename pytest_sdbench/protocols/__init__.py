"""Everything that fixes a score besides the weights."""
