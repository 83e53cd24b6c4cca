"""All that only MLX's CUDA backend needs."""
