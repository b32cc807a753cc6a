"""From settings to a run: what every program prepares before it trains, samples or examines."""
