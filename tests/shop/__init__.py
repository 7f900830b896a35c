"""A small app for tests: sales and visits of shops."""
