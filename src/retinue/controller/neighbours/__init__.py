"""Answers to address resolution."""
