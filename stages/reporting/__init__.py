"""The page that a release engineer signs off on: `tapeout report`, for the pipelines of this project."""
