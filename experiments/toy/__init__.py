"""Small studies of objectives, exact or nearly so, that run in seconds."""
