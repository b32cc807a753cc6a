"""From settings to a run: the preparation that programs share before they train, sample or examine."""
