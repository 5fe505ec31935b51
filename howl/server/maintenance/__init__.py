"""Maintenance loops: leases, lost and expired tasks, memory limits, and scripts that block Redis."""
