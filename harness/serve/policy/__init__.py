"""The policy of a server: its TOML file, and the enforcer that applies its actions to answers.

Requests are checked against the policy in `harness.serve.api.validation`.
"""
