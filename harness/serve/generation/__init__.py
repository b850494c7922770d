"""How the next token of an answer is chosen."""
