"""What the arms of a rollout came to."""
