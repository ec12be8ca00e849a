"""Names and formats of everything under the root: fingerprints, parts, snapshots, feature parts."""
