"""A client's end: the app that answers, what it is told of itself, and what it keeps."""
