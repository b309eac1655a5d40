"""Judges trained models: roll-outs that never see the truth, scores in physical units, and the report on them."""
