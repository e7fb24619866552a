"""Everything specific to models: finding, loading, guiding, decoding."""
