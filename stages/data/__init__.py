"""Images, prompts, tokenizer, preprocessing, and the procedural reference data."""
