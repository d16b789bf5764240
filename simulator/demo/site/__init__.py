"""The demonstration of a whole site: edges, a gateway, a cluster, workers that die at each step."""
