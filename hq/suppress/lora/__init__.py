"""Suppression as a LoRA for runtimes without hq: a GGUF adapter, or a PEFT folder.

The scale s of an adapter sets α(s) = 1 + s·(α₀ − 1). Baking α into weights is in
`hq.suppress.bake`.
"""
