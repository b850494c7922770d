"""Detection: the FP16 probe at each precision, beside its controls.

The probe itself is found by stage `identify` in `harness.stages`.
"""
