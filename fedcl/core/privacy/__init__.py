"""Differential privacy of replies: clips, noise, and training that protects single examples."""
