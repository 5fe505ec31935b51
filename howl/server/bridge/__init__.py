"""What workers tell over NATS, for the record and for who watches."""
