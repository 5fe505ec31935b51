"""The persistent side: what keeps the record."""
