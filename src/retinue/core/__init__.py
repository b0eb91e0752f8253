"""The pure core: no input or output, no clock, no randomness, no logging; times and ids are arguments."""
