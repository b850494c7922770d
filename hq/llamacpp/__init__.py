"""llama.cpp by its low-level API: models, contexts, samplers, and a compiled eval callback.

The callback reads and scales FFN activations while llama.cpp computes. The backend that implements
hq's protocol with these parts is in `hq.backends.llamacpp`.
"""
