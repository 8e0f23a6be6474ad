"""What networks cost, measured beside other libraries' of the same architecture."""
