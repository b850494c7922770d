"""Suppression as a LoRA, for runtimes that know nothing of hq: a GGUF adapter or a PEFT folder.

The scale that an adapter runs at moves α: α(s) = 1 + s·(α₀ − 1). Nothing of a base's weights is
rounded anew: one factor of every product holds vectors of its own, the other is one-hot.
"""
