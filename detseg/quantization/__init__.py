"""Networks of 8-bit integers: trained for it."""
