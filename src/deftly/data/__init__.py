"""Episodes: recorded and replayed."""
