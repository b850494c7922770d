"""Directed fine-tuning: a LoRA that is trained with a penalty on the contribution of neurons.

`training` runs the loop, `contribution` has the penalty, `adapter` the LoRA; `merging` and `gguf`
write what other software loads. Studies of tuned models are in `harness.experiments.finetune`.
"""
