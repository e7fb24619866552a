"""Finds cache settings for a model by measuring how much its images change, and how much is saved."""
