"""The LaSeR loop and what a run needs around it; read loop.py first."""
