"""The edge: readings in, decisions out, everything recorded."""
