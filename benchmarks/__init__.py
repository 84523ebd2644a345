"""Programs that measure our own speed against others, and their recorded results."""
