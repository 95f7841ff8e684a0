"""`laser eval`: a model's samples on problem sets, and what they say about it and its score."""
