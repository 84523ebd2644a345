"""Questions that only a GPU can answer, each a command of a few minutes."""
