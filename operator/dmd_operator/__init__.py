"""The operator: it observes a run's children, decides, and applies what it decided."""
