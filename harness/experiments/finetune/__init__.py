"""Experiment finetune: a model trained to use its H-Neurons less, and what that changes.

Training is in `hq.tuning`. Behaviour, probe, re-identified neurons and capability of the tuned
models are compared with the study's model, with a LoRA that penalises matched neurons instead, and
with a plain LoRA.
"""
