"""Judges of responses, and how text is normalised, read and compared.

Which questions are asked, and in what form, is in `harness.scenarios`.
"""
