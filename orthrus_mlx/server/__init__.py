"""The HTTP API: `app` takes requests, `worker` writes answers on the one thread that has MLX."""
