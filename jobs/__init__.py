"""Entry points that are submitted to a cluster or run by hand."""
