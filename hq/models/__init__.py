"""Where a model's parts are, by architecture. Nothing here runs a study or reads a GGUF file."""
