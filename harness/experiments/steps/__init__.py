"""Experiment steps: scores of the steps of an answer, and the first wrong step.

Two-hop questions are composed in `chains` and answered in `nodes`; `problems` reads files of given
solutions, and `answers` labels steps and locates their tokens.
"""
