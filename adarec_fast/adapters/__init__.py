"""Other frameworks' interfaces over this package's model; each is imported on its own."""
