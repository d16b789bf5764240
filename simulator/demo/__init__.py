"""The demonstration: real processes, a cut network, and an account computed from outside."""
