"""The world: one module for each library or boundary, each the only one that knows it."""
