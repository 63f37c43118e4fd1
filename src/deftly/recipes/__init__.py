"""What serves one family of tasks."""
