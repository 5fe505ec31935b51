"""Record outcomes as rows: the streams they arrive in, and what and how much a credential may report."""
