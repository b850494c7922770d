"""Governance at run time: a monitored model behind the OpenAI interface."""
