"""What nobody else looks after: leases, what is missing or too late, limits, and scripts that hold up Redis."""
