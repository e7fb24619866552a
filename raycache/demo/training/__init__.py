"""How the demonstration model was trained: its data, its two halves, and the folder that comes of them."""
