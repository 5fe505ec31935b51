"""Read-only questions: the CLI and the MCP shim ask them here."""
