"""What was released to whom: a signed history, and what follows from it."""
