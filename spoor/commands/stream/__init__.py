"""`spoor stream` (the worker, and orders to running workers) and `spoor dlq` (dead letters)."""
