"""What runs a model: one protocol, and torch behind it."""
