"""Pure functions: bytes, numpy, Faiss and Arrow in; numpy and Arrow out. They know no path, config or cluster."""
