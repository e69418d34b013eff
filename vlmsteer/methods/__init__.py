"""One file a method. Each learns vectors from examples and returns recipes."""
