"""The app that `sameriver bench stream` runs."""
