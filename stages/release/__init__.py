"""What comes after a build: bundles that are signed and traced, releases, an update repository and its client."""
