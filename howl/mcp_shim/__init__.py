"""Tools for models over MCP, and the server that serves them."""
