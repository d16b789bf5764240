"""The search for a crash that makes the spool lie: seeded histories, cut, opened again, audited."""
