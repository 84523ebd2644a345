"""Build students out of teachers."""
