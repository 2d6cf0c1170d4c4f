"""Exercises: stubs, checks that speak to the student's code through three verbs, and feedback."""
