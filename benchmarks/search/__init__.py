"""What benchmarks/search.py measures, and the long steps that it keeps."""
