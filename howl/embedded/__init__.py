"""Real Redis, NATS and PostgreSQL servers on one machine with no set-up, for development, demo and tests."""
