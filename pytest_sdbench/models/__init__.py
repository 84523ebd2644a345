"""Networks and their weights: find, check, load, count and time them."""
