"""The embedded nats-server: an MQTT broker for an edge, JetStream for headquarters."""
