"""The documentation: its site, and that what it tells people to type works."""
