"""Read-only queries for the CLI and the MCP shim."""
