"""Small studies of objectives and optimizers that run on a CPU in seconds or minutes."""
