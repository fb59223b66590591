"""`dmdctl`: the command a person types."""
