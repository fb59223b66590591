"""Measures of a training's health and what they mean."""
