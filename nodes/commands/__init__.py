"""The command line: each module one command, and the only builders of adapters."""
