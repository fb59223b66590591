"""Pairs, real images, and what ships with the trainer."""
