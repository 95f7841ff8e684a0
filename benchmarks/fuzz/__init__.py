"""Damaged input by the hundred: each is accepted, or refused with a message that names the place."""
