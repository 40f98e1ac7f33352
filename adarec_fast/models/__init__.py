"""Systems that recommend: each a map from a history to a vector, and a table of items."""
