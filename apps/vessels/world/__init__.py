"""A simulated world of vessels with the truth of what each was doing; see docs/vessels.md."""
