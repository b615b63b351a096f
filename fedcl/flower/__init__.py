"""Flower: its ServerApp and ClientApp for real devices, its simulation, and anybody's Flower app.

Files here are what is started by name, and the little that several rooms need. A federation is
`server` and `node`, which share what they say (`protocol`); `simulation` runs both of them on one
machine. `grid` stands alone: it knows nothing of continual learning.
"""
