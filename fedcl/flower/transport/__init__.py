"""Messages on their way through a Grid: many in one request, answers each for itself."""
