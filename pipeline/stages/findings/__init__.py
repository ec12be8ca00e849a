"""Findings stage: the tables of an audit, range of offsets by range, and its summary."""
