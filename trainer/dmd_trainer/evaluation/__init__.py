"""Measures how good generators are: features, metrics against real images, pictures and the report."""
