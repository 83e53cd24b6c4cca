"""What the commands bench and verify run."""
