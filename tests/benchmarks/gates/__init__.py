"""What stops a change: counts that moved, and hot paths that became slower than the base's."""
