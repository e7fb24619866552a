"""What only models know: finding, loading, guiding, decoding."""
