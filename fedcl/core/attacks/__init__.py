"""Attackers: who they are, what they learn, send, and read from gradients."""
