"""Teachers by family: everything that a diffusers pipeline does around its network."""
