"""How answers are scored, and how two sets of answers are compared."""
