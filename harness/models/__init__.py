"""Where a study's model comes from, its tokenizer, and what each precision needs.

Files made for one precision are stages: `harness.stages`.
"""
