"""Shows the runs of a cluster and what their workers write."""
