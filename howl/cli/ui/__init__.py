"""What commands share: options, how values read, and what is shown of long work."""
