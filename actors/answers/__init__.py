"""Reads the answer to a mathematical problem, wholly or not at all, and says whether two answers are equal.

In: two texts, as a data set and a model write them. Out: whether they mean the same, and by which rule. The
text is normalised (`normalise`, `numerals`), cut into tokens (`tokens`), read by a grammar into nodes
(`grammar`, `nodes`) and into one of the forms that an answer may have (`read`, `forms`), and two forms are
compared exactly (`compare`). A text that the grammar does not consume to its end is not read: no part of it
is ever taken for the whole. Nothing is evaluated as Python.
"""
