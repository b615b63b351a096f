"""What a model's layers see: their inputs, Gram matrices, subspaces and ridge regression."""
