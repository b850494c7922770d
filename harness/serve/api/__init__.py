"""OpenAI's wire format: what a request may hold, and how each field is treated."""
