"""The update repository: static files with the metadata of The Update Framework."""
