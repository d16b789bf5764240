"""What runs: configuration, the roles, their commands."""
