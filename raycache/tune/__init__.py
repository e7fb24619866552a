"""Finds cache settings for a model by measuring: how far its images move, and how much is saved."""
