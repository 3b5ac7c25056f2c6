"""Models that are a graph with its weights beside it: what they say of themselves."""
