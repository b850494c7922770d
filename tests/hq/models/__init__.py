"""Tests of hq.models."""
