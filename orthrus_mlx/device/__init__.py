"""What is measured on this device: which row counts agree bit for bit, and what passes cost."""
