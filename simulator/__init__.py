"""A world to run in: simulated ports, and live pieces that stand for a plant and its network."""
