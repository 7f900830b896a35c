"""Apps: one folder each."""
