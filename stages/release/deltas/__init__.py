"""The difference between two releases, tensor by tensor."""
