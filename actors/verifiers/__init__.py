"""The verifiers that come with the project, and how a user's own is loaded and called.

In: a response and its `Problem`, in a child process of a verification worker. Out: a `Verdict`.
"""
