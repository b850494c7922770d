"""GGUF files: read, checked to the last byte of their header, and told apart by their weights."""
