"""Everything that tenants can write, with mistakes in it."""
