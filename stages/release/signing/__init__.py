"""Keys and signatures, where a bundle comes from, and checking all of it."""
