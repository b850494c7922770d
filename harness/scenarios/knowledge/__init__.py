"""Scenario `knowledge`: short questions on many subjects, one file per relation in `relations`."""
