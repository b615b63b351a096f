"""Losses that methods share: distillation, prototypes, anchors and balanced cross-entropies."""
