"""Read and edit model cards: claims, records, and the tests that they become."""
