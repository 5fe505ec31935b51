"""What a worker tells of itself and its tasks over NATS: events and heartbeats. No correctness rests on it."""
