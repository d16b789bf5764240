"""The durable store-and-forward queue of one node."""
