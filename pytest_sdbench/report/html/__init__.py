"""The page of a run: one file that opens anywhere, sends nothing and needs no script to be read."""
