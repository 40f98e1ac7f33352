"""ADARec on the encoders of other systems, with their losses; imported part by part."""
