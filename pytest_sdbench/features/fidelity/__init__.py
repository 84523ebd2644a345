"""What a pair of pictures of one prompt and noise has in common: one extractor a file."""
