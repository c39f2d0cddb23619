"""The native engine: our own library in C, which uses every core of a machine."""
