"""Converts teachers and draws from generators."""
