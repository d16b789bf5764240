"""The gateway: takes custody for a site, and forwards what it holds."""
