"""Thin steps of an audit: each reads parts, calls kernels and commits parts. They know no Ray."""
