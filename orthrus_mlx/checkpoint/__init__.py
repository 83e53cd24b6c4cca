"""What is on disk: find, check, load and describe a checkpoint."""
