"""Batch jobs: history into training rows, predictions and state."""
