"""Networks that diffusers has none for."""
