"""What is known of devices, and what can be said of a model on one without running it there."""
