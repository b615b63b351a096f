"""Flower's own simulation: its parts, its nodes, and a thread that runs it for experiments."""
