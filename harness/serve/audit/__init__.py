"""The audit log: records of responses, hash chain, log files, verification and queries.

The commands `hq audit verify` and `hq audit query` are in `harness.cli.audit`.
"""
