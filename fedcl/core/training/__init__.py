"""How a block of clients trains as one computation, and the course of learning rates."""
