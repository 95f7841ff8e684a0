"""Runs as jobs of a Ray cluster: what is sent there, the driver that runs it there, and how it is followed from here."""
