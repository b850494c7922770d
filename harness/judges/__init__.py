"""Judges of answers, and the text rules that they share: normalisation, names, quantities, phrases.

What is asked, and what compliance means in each scenario, is in `harness.scenarios`.
"""
