"""The stages of a study: each a function from files to files."""
