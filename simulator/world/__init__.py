"""A world of edges, gateways and headquarters on virtual time, and what goes wrong in it."""
