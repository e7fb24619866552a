"""Finds cache settings for a model by measuring: how far its pictures move, and how much is saved."""
