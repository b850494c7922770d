"""Experiment tokens: the score of every token of the samples' answers."""
