"""What a forwarder is made of: its links, the batches that it has begun to send, what it tells."""
