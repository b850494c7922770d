"""harness: studies of H-Neurons across precisions, from questions to committed tables."""
