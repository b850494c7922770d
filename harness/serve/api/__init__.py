"""OpenAI's interface: models of requests and responses, errors, validation, server-sent events.

Routes and HTTP headers are in `harness.serve.web`, generation in `harness.serve.generation`.
"""
