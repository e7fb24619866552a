"""The training of the demonstration model: its data, its two halves, and the resulting folder."""
