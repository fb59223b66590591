"""What people install: the wheel, its dependencies, and the release that publishes them."""
