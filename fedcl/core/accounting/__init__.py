"""What privacy costs: how mechanisms compose, the ledgers, and the noise that an epsilon needs."""
