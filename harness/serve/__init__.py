"""The server of `hq serve`: a monitored model behind OpenAI's interface, with policy and audit log.

`generation` writes answers, `policy` applies actions to them, `audit` records them, `api`
translates requests and responses, and `web` serves HTTP; `page` holds the web page's files.
Monitors and bundles are in `hq.monitor`, the commands in `harness.cli`.
"""
