"""What pytest sees: options, collection, fixtures, the tests, and what came of them."""
