"""Tests of where a model's parts are."""
