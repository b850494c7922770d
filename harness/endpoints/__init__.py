"""Clients of OpenAI-compatible servers: requests with retries, and completions as token ids.

`client` sends requests, `abilities` finds out what a server can do, `completions` asks it.
"""
