"""The bundled demonstration model: a drawn world, a small FLUX trained on it, and a judge of its pictures."""
