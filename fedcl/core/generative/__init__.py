"""Images of old classes that nobody keeps: generators, reconstruction, and their rehearsal."""
