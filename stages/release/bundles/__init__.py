"""A bundle as a folder and as an archive, and what it says of itself."""
