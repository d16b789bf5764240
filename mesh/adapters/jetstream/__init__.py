"""Links, intakes and ledgers over NATS JetStream: the only importers of nats."""
