"""Examples that clients keep, and how they are chosen."""
