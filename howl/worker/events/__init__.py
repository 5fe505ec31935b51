"""What a worker reports of itself and its tasks over NATS: events and heartbeats. No correctness depends on it."""
