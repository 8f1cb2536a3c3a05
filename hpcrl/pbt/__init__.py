"""Population-based training on shared storage: records in, decision out. Knows no torch."""
