"""What HOWL promises when something breaks, tried with real processes: `make faults`."""
