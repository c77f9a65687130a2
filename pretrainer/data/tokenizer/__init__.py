"""Training, loading, freezing, comparing and exporting tokenizers."""
