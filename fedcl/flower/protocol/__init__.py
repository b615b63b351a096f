"""What server and nodes say to each other: questions, answers, introductions, and their checks."""
