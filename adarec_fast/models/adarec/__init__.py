"""ADARec (AAAI 2026), Eq. 1 to 13; imported part by part."""
