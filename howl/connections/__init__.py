"""All connections to Redis, NATS and PostgreSQL, over TLS where their addresses say so."""
