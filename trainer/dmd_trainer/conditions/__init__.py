"""Conditions of the networks: class labels, or prompts."""
