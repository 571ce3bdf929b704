"""The update client."""
