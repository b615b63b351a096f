"""Audits: they look at what a run sends and releases, and measure what that tells."""
