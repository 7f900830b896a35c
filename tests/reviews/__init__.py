"""An app whose events carry a text, and a service that says something about it."""
