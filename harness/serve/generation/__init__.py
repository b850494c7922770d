"""Generation of answers: served model, sampler, JSON grammars, request queue and engine thread.

HTTP, OpenAI's JSON format, the policy and the audit log are in the other rooms of the server.
"""
