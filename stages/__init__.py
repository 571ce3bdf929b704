"""The stages of a build, and the machinery beside them."""
