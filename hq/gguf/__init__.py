"""GGUF files: headers, tensors, norms, configs and tokenizers; writing and quantizing them.

Nothing here runs a model: the llama.cpp library is in `hq.llamacpp`, the backend in
`hq.backends.llamacpp`.
"""
