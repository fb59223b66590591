"""What several processes agree on, and how networks are shared among them."""
