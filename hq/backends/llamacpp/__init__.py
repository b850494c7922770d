"""The llama.cpp backend: prompt–response pairs packed into batches, traced, predicted, continued.

The interface to the llama.cpp library and its compiled callback is in `hq.llamacpp`.
"""
