"""Failures of pools as messages to users."""

LOGS = "/tmp/ray/session_latest/logs"
