"""Real Redis, NATS and PostgreSQL servers on one machine without set-up, for development, demo and tests."""
