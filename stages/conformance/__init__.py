"""The conformance vectors of mobile/spec: what every SDK must do, made from a bundle by the Python side."""
