"""Reports: what the folders of runs, evaluations, comparisons and sweeps hold, as one page."""
