"""Tests of HOWL's promises under faults, with real processes: `make faults`."""
