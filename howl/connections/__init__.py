"""The one place that dials: Redis, NATS and PostgreSQL, over TLS where their addresses say so."""
