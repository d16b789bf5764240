"""The transfer of custody: what a receiver knows, and what a sender does next."""
