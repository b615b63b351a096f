"""Anybody's Flower app, unchanged, over a Grid that answers in blocks: here, or on Ray workers."""
