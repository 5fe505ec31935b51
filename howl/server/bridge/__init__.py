"""The bridge: what workers report over NATS, recorded and shown live."""
