"""Pure functions of tensors: all that a head may touch beside layers."""
