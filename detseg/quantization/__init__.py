"""Networks in int8: which operators, with which ranges, what it costs, and how they are trained for it."""
