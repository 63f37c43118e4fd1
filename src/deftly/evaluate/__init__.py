"""Which policy is meant, episodes of it, and the report."""
