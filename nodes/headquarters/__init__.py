"""Headquarters: takes batches, keeps ledgers, archives, and answers with receipts."""
