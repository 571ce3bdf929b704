"""What executes an artifact, each behind one protocol: ONNX Runtime, and the Core ML reference executor."""
